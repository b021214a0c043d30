"""Torch modules with the names and the numerics of VideoCrafter's networks, written from their description."""

import torch
from parity.lvdm_layout import GROUPS, Attention, FeedForward
from torch import nn
from torch.nn import functional

STEM_HEADS = 8


class OverTime(nn.Module):
    """Four times norm over the clip, SiLU, convolution over three frames; residual."""

    def __init__(self, dim):
        super().__init__()
        for i in range(1, 5):
            layers = [nn.GroupNorm(GROUPS, dim), nn.SiLU(), *([nn.Dropout(0.1)] if i > 1 else [])]
            setattr(self, f"conv{i}", nn.Sequential(*layers, nn.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0))))

    def forward(self, x):
        return x + self.conv4(self.conv3(self.conv2(self.conv1(x))))


class Residual(nn.Module):
    def __init__(self, cin, cout, emb, convs):
        super().__init__()
        conv = lambda a: nn.Conv2d(a, cout, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, cin), nn.SiLU(), conv(cin))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, cout))
        self.out_layers = nn.Sequential(nn.GroupNorm(GROUPS, cout), nn.SiLU(), nn.Dropout(0.0), conv(cout))
        self.skip_connection = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        if convs:
            self.temopral_conv = OverTime(cout)

    def forward(self, x, emb, tokens):  # [b, t, c, h, w]
        b, t = x.shape[:2]
        x = x.flatten(0, 1)
        h = self.in_layers(x) + self.emb_layers(emb).repeat_interleave(t, 0)[:, :, None, None]
        h = (self.skip_connection(x) + self.out_layers(h)).unflatten(0, (b, t))
        return self.temopral_conv(h.transpose(1, 2)).transpose(1, 2) if hasattr(self, "temopral_conv") else h


class Beside(Attention):
    """To text, and apart from it to a picture's tokens, the last ones."""

    def __init__(self, dim, heads, tokens_dim, picture):
        super().__init__(dim, heads, tokens_dim=tokens_dim)
        self.to_k_ip, self.to_v_ip = (nn.Linear(tokens_dim, dim, bias=False) for _ in "kv")
        self.picture = picture

    def forward(self, x, tokens=None):
        split = lambda a: a.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        own, shown = tokens[:, : -self.picture], tokens[:, -self.picture :]
        pairs = ((self.to_k(own), self.to_v(own)), (self.to_k_ip(shown), self.to_v_ip(shown)))
        q = split(self.to_q(x))
        out = sum(functional.scaled_dot_product_attention(q, split(k), split(v)) for k, v in pairs)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Of space with `tokens_dim`, else of time."""

    def __init__(self, dim, heads, tokens_dim=None, reach=None, picture=0):
        super().__init__()
        self.attn1 = Attention(dim, heads, reach)
        self.attn2 = Beside(dim, heads, tokens_dim, picture) if picture else Attention(dim, heads, reach, tokens_dim)
        self.ff = FeedForward(dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x, tokens=None):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), tokens)
        return x + self.ff(self.norm3(x))


class Space(nn.Module):
    def __init__(self, dim, heads, tokens_dim, picture):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, dim, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList([Block(dim, heads, tokens_dim, picture=picture)])

    def forward(self, x, emb, tokens):
        y = self.proj_in(self.norm(x.flatten(0, 1)).flatten(2).transpose(1, 2))
        y = self.proj_out(self.transformer_blocks[0](y, tokens.repeat_interleave(x.shape[1], 0)))
        return x + y.transpose(1, 2).reshape(x.shape)


class Time(nn.Module):
    """`conv`: its projections are convolutions of width 1, as in front of the first level."""

    def __init__(self, dim, heads, inner, reach, conv=False):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, dim, eps=1e-6)
        make = (lambda a, b: nn.Conv1d(a, b, 1)) if conv else nn.Linear
        self.proj_in, self.proj_out, self.conv = make(dim, inner), make(inner, dim), conv
        self.transformer_blocks = nn.ModuleList([Block(inner, heads, reach=reach)])

    def forward(self, x, emb, tokens):
        b, t, c, h, w = x.shape
        y = self.norm(x.transpose(1, 2)).permute(0, 3, 4, 2, 1).reshape(b * h * w, t, c)
        project = lambda layer, y: layer(y.transpose(1, 2)).transpose(1, 2) if self.conv else layer(y)
        y = project(self.proj_out, self.transformer_blocks[0](project(self.proj_in, y)))
        return x + y.reshape(b, h, w, t, c).permute(0, 3, 4, 1, 2)


class Down(nn.Module):
    """`border`: rows of zeros above and below."""

    def __init__(self, dim, border=1):
        super().__init__()
        self.op = nn.Conv2d(dim, dim, 3, 2, (border, 1))

    def forward(self, x, emb, tokens):
        return self.op(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Up(nn.Module):
    """`cut`: rows of the doubled map that are left out above and below."""

    def __init__(self, dim, cut=0):
        super().__init__()
        self.conv, self.cut = nn.Conv2d(dim, dim, 3, padding=1), cut

    def forward(self, x, emb, tokens):
        larger = functional.interpolate(x.flatten(0, 1), scale_factor=2)
        return self.conv(larger[:, :, self.cut : larger.shape[2] - self.cut]).unflatten(0, x.shape[:2])


class UNet(nn.Module):
    """`picture`: how many of the tokens are a picture's."""

    def __init__(self, width, mult, n, attends, head, tokens_dim, relative=False, convs=False, fps=False, picture=0):
        super().__init__()
        emb, reach = 4 * width, 16 if relative else None
        embed = lambda: nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.width, self.time_embed = width, embed()
        if fps:
            self.fps_embedding = embed()
        res = lambda a, b: Residual(a, b, emb, convs)
        attend = lambda c: [Space(c, c // head, tokens_dim, picture), Time(c, c // head, c, reach)]
        stage = lambda a, b, level: [res(a, b), *(attend(b) if attends[level] else [])]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, width, 3, padding=1)])])
        self.init_attn = nn.ModuleList([Time(width, STEM_HEADS, STEM_HEADS * head, reach, conv=True)])
        skips, c = [width], width
        for level, m in enumerate(mult):
            for _ in range(n):
                self.input_blocks.append(nn.ModuleList(stage(c, m * width, level)))
                c = m * width
                skips.append(c)
            if level < len(mult) - 1:
                self.input_blocks.append(nn.ModuleList([Down(c)]))
                skips.append(c)
        self.middle_block = nn.ModuleList([res(c, c), *attend(c), res(c, c)])
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(mult))):
            for i in range(n + 1):
                layers = stage(c + skips.pop(), mult[level] * width, level)
                c = mult[level] * width
                self.output_blocks.append(nn.ModuleList([*layers, *([Up(c)] if level and i == n else [])]))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, c), nn.SiLU(), nn.Conv2d(c, 4, 3, padding=1))

    def sinusoid(self, numbers):
        half = self.width // 2
        angles = numbers[:, None].float() * torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(half) / half)
        return torch.cat([angles.cos(), angles.sin()], -1)

    def forward(self, x, t, tokens, fps=None):  # [b, t, c, h, w]
        emb = self.time_embed(self.sinusoid(t))
        if fps is not None:
            emb = emb + self.fps_embedding(self.sinusoid(fps))
        x = self.input_blocks[0][0](x.flatten(0, 1)).unflatten(0, x.shape[:2])
        skips = [self.init_attn[0](x, emb, tokens)]
        for layers in self.input_blocks[1:]:
            h = skips[-1]
            for layer in layers:
                h = layer(h, emb, tokens)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb, tokens)
        for layers in self.output_blocks:
            h = torch.cat([h, skips.pop()], 2)
            for layer in layers:
                h = layer(h, emb, tokens)
        return self.out(h.flatten(0, 1)).unflatten(0, h.shape[:2])


class Look(nn.Module):
    def __init__(self, dim, heads, head=64):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, heads * head, bias=False), nn.Linear(dim, 2 * heads * head, bias=False)
        self.to_out, self.heads = nn.Linear(heads * head, dim, bias=False), heads

    def forward(self, x, queries):
        queries = self.norm2(queries)
        k, v = self.to_kv(torch.cat([self.norm1(x), queries], 1)).chunk(2, -1)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (self.to_q(queries), k, v))
        return self.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    def __init__(self, source=1280, dim=1024, out=1024, queries=16, depth=4, heads=12):
        super().__init__()
        self.latents = nn.Parameter(torch.empty(1, queries, dim))
        self.proj_in, self.proj_out, self.norm_out = nn.Linear(source, dim), nn.Linear(dim, out), nn.LayerNorm(out)
        layer = lambda a, b: nn.Linear(a, b, bias=False)
        ff = lambda: nn.Sequential(nn.LayerNorm(dim), layer(dim, 4 * dim), nn.GELU(), layer(4 * dim, dim))
        self.layers = nn.ModuleList([nn.ModuleList([Look(dim, heads), ff()]) for _ in range(depth)])

    def forward(self, x):
        queries, x = self.latents.repeat(len(x), 1, 1), self.proj_in(x)
        for look, ff in self.layers:
            queries = queries + look(x, queries)
            queries = queries + ff(queries)
        return self.norm_out(self.proj_out(queries))
