"""Torch modules with the names and the numerics of LVDM's networks, written from its description: what tests load."""

import torch
from torch import nn
from torch.nn import functional

GROUPS = 32


class Residual(nn.Module):
    def __init__(self, cin, cout, emb, scale_shift):
        super().__init__()
        conv = lambda a, b: nn.Conv3d(a, b, (1, 3, 3), padding=(0, 1, 1))
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, cin), nn.SiLU(), conv(cin, cout))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, cout * (1 + scale_shift)))
        self.out_layers = nn.Sequential(nn.GroupNorm(GROUPS, cout), nn.SiLU(), nn.Dropout(0.0), conv(cout, cout))
        self.skip_connection = nn.Conv3d(cin, cout, 1) if cin != cout else nn.Identity()
        self.scale_shift = scale_shift

    def forward(self, x, emb, tokens):
        h, told = self.in_layers(x), self.emb_layers(emb)[:, :, None, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, 1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class Relative(nn.Module):
    def __init__(self, reach, dim):
        super().__init__()
        self.embeddings_table = nn.Parameter(torch.empty(2 * reach + 1, dim))
        self.reach = reach

    def forward(self, t):
        steps = torch.arange(t)
        return self.embeddings_table[(steps[None] - steps[:, None]).clamp(-self.reach, self.reach) + self.reach]


class Plain(nn.Module):
    """Attention in space, then in time, whose key term is added transposed and scaled by d^-1/4."""

    def __init__(self, dim, heads, reach):
        super().__init__()
        for end in "st":
            setattr(self, f"norm_{end}", nn.GroupNorm(GROUPS, dim))
            setattr(self, f"qkv_{end}", nn.Conv1d(dim, 3 * dim, 1))
            setattr(self, f"proj_out_{end}", nn.Conv1d(dim, dim, 1))
        self.relative_position_k, self.relative_position_v = (Relative(reach, dim // heads) for _ in "kv")
        self.heads = heads

    def attend(self, x, end):
        norm, qkv, out = (getattr(self, f"{name}_{end}") for name in ("norm", "qkv", "proj_out"))
        n, c, length = x.shape
        q, k, v = (a.reshape(n * self.heads, c // self.heads, length) for a in qkv(norm(x)).chunk(3, 1))
        d = c // self.heads
        weights = q.transpose(1, 2) @ k * d**-0.5
        if end == "t":
            weights = weights + torch.einsum("bct,tsc->bst", q, self.relative_position_k(length)) * d**-0.25
        weights = weights.softmax(-1)
        a = torch.einsum("bts,bcs->bct", weights, v)
        if end == "t":
            a = a + torch.einsum("bts,tsc->bct", weights, self.relative_position_v(length))
        return out(a.reshape(n, c, length))

    def forward(self, x, emb, tokens):
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, h * w)
        x = x + self.attend(frames, "s").reshape(b, t, c, h, w).transpose(1, 2)
        pixels = x.permute(0, 3, 4, 1, 2).reshape(b * h * w, c, t)
        return x + self.attend(pixels, "t").reshape(b, h, w, c, t).permute(0, 3, 4, 1, 2)


class Attention(nn.Module):
    def __init__(self, dim, heads, reach=None, tokens_dim=None):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(a, dim, bias=False) for a in (dim, *[tokens_dim or dim] * 2))
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))
        self.heads = heads
        if reach:
            self.relative_position_k, self.relative_position_v = (Relative(reach, dim // heads) for _ in "kv")

    def forward(self, x, tokens=None):
        n, length, c = x.shape
        split = lambda a: a.reshape(n, -1, self.heads, c // self.heads).transpose(1, 2)
        source = x if tokens is None else tokens
        q, k, v = split(self.to_q(x)), split(self.to_k(source)), split(self.to_v(source))
        relative = hasattr(self, "relative_position_k")
        weights = q @ k.transpose(-1, -2)
        if relative:
            weights = weights + torch.einsum("bhtd,tsd->bhts", q, self.relative_position_k(length))
        weights = (weights * (c // self.heads) ** -0.5).softmax(-1)
        out = weights @ v
        if relative:
            out = out + torch.einsum("bhts,tsd->bhtd", weights, self.relative_position_v(length))
        return self.to_out(out.transpose(1, 2).reshape(n, length, c))


class Gated(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.proj = nn.Linear(dim, 8 * dim)

    def forward(self, x):
        h, gate = self.proj(x).chunk(2, -1)
        return h * functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(Gated(dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, dim, heads, reach, tokens_dim):
        super().__init__()
        self.attn1, self.attn2 = Attention(dim, heads), Attention(dim, heads, tokens_dim=tokens_dim)
        self.attn1_tmp, self.attn2_tmp = (Attention(dim, heads, reach) for _ in "12")
        self.ff = FeedForward(dim)
        for i in range(1, 6):
            setattr(self, f"norm{i}", nn.LayerNorm(dim))

    def forward(self, x, tokens):  # [b, t, n, c]
        b, t, n, c = x.shape
        frames = lambda f, x: f(x.reshape(b * t, n, c)).reshape(b, t, n, c)
        pixels = lambda f, x: f(x.transpose(1, 2).reshape(b * n, t, c)).reshape(b, n, t, c).transpose(1, 2)
        each = tokens.repeat_interleave(t, 0)
        x = x + frames(lambda y: self.attn1(self.norm1(y)), x)
        x = x + pixels(lambda y: self.attn1_tmp(self.norm4(y)), x)
        x = x + frames(lambda y: self.attn2(self.norm2(y), each), x)
        x = x + pixels(lambda y: self.attn2_tmp(self.norm5(y)), x)
        return x + self.ff(self.norm3(x))


class Textual(nn.Module):
    def __init__(self, dim, heads, reach, tokens_dim):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, dim, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv3d(dim, dim, 1), nn.Conv3d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList([Block(dim, heads, reach, tokens_dim)])

    def forward(self, x, emb, tokens):
        b, c, t, h, w = x.shape
        y = self.proj_in(self.norm(x)).permute(0, 2, 3, 4, 1).reshape(b, t, h * w, c)
        y = self.transformer_blocks[0](y, tokens).reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)
        return x + self.proj_out(y)


class Down(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.op = nn.Conv3d(dim, dim, (1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x, emb, tokens):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv3d(dim, dim, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x, emb, tokens):
        return self.conv(functional.interpolate(x, scale_factor=(1, 2, 2)))


class UNet(nn.Module):
    """`levels`: classes of known frames' noise, of the model that predicts frames."""

    def __init__(self, width, mult, n, attends, heads, reach, tokens_dim=None, scale_shift=True, channels=4, levels=0):
        super().__init__()
        emb = 4 * width
        self.width, self.time_embed = width, nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if levels:
            self.label_emb = nn.Embedding(levels, emb)
        res = lambda a, b: Residual(a, b, emb, scale_shift)
        attend = lambda c: Textual(c, heads, reach, tokens_dim) if tokens_dim else Plain(c, heads, reach)
        stage = lambda a, b, level: [res(a, b), *([attend(b)] if attends[level] else [])]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv3d(channels, width, (1, 3, 3), padding=(0, 1, 1))])])
        skips, c = [width], width
        for level, m in enumerate(mult):
            for _ in range(n):
                self.input_blocks.append(nn.ModuleList(stage(c, m * width, level)))
                c = m * width
                skips.append(c)
            if level < len(mult) - 1:
                self.input_blocks.append(nn.ModuleList([Down(c)]))
                skips.append(c)
        self.middle_block = nn.ModuleList([res(c, c), attend(c), res(c, c)])
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(mult))):
            for i in range(n + 1):
                layers = stage(c + skips.pop(), mult[level] * width, level)
                c = mult[level] * width
                self.output_blocks.append(nn.ModuleList([*layers, *([Up(c)] if level and i == n else [])]))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, c), nn.SiLU(), nn.Conv3d(c, 4, (1, 3, 3), padding=(0, 1, 1)))

    def forward(self, x, t, tokens=None, levels=None):
        half = self.width // 2
        angles = t[:, None].float() * torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1))
        if levels is not None:
            emb = emb + self.label_emb(levels)
        skips = [self.input_blocks[0][0](x)]
        for layers in self.input_blocks[1:]:
            h = skips[-1]
            for layer in layers:
                h = layer(h, emb, tokens)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb, tokens)
        for layers in self.output_blocks:
            h = torch.cat([h, skips.pop()], 1)
            for layer in layers:
                h = layer(h, emb, tokens)
        return self.out(h)


def pads(size, strides):
    """Of `functional.pad`, the last axis first: k - s each, the odd one in front."""
    return [p for k, s in zip(size[::-1], strides[::-1]) for p in ((k - s + 1) // 2, (k - s) // 2)]


class SameConv(nn.Module):
    """Its weight is there under two names, as in the released files."""

    def __init__(self, cin, cout, k, strides=(1, 1, 1)):
        super().__init__()
        self.conv, self.pads = nn.Conv3d(cin, cout, k, strides), pads((k,) * 3, strides)
        self.weight = self.conv.weight

    def forward(self, x):
        return self.conv(functional.pad(x, self.pads, mode="replicate"))


class SameTransposed(nn.Module):
    def __init__(self, cin, cout, strides):
        super().__init__()
        self.convt, self.pads = nn.ConvTranspose3d(cin, cout, 4, strides, padding=3), pads((4,) * 3, strides)

    def forward(self, x):
        return self.convt(functional.pad(x, self.pads, mode="replicate"))


class SameResidual(nn.Module):
    def __init__(self, dim):
        super().__init__()
        for i in "12":
            setattr(self, f"norm{i}", nn.GroupNorm(GROUPS, dim, eps=1e-6))
            setattr(self, f"conv{i}", SameConv(dim, dim, 3))

    def forward(self, x):
        h = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(h)))


class Autoencoder(nn.Module):
    """4 x 8 x 8 pixels a latent, time first both ways."""

    def __init__(self, width=32, latent=4):
        super().__init__()
        steps, widths = [(2, 2, 2), (2, 2, 2), (1, 2, 2)], [width * 2**i for i in range(4)]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.conv_first = SameConv(3, width, 3)
        self.encoder.conv_blocks, self.decoder.conv_blocks = nn.ModuleList(), nn.ModuleList()
        for i, stride in enumerate(steps):
            down = nn.Module()
            down.down, down.res = SameConv(widths[i], widths[i + 1], 4, stride), SameResidual(widths[i + 1])
            self.encoder.conv_blocks.append(down)
        ends = nn.GroupNorm(GROUPS, widths[3], eps=1e-6), nn.SiLU(), SameConv(widths[3], 2 * latent, 3)
        self.encoder.final_block = nn.Sequential(*ends)
        self.quant_conv, self.post_quant_conv = (nn.Conv3d(c, c, 1) for c in (2 * latent, latent))
        for i, (a, b) in enumerate(zip((latent, *widths[:1:-1]), widths[:0:-1])):
            up = nn.Module()
            up.up, up.res1, up.res2 = SameTransposed(a, b, steps[i]), SameResidual(b), SameResidual(b)
            self.decoder.conv_blocks.append(up)
        self.decoder.conv_out = SameConv(widths[1], 3, 3)

    def encode(self, x):
        x = self.encoder.conv_first(x)
        for block in self.encoder.conv_blocks:
            x = block.res(block.down(x))
        return self.quant_conv(self.encoder.final_block(x))

    def decode(self, z):
        x = self.post_quant_conv(z)
        for block in self.decoder.conv_blocks:
            x = block.res2(block.res1(block.up(x)))
        return self.decoder.conv_out(x)
