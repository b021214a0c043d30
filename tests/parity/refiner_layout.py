"""Torch modules with the names and numerics of I2VGen-XL's second stage, and its sampling, from their description."""

import math

import torch
from parity.lvdm_layout import GROUPS
from parity.videocrafter_layout import STEM_HEADS, Down, Residual, Space, Time, Up
from torch import nn

FACTORS = ((1.1, 0.6), (1.2, 0.4))  # FreeU's, of the first two blocks on the way up


def lower(x, factor):
    """A 2x2 window around the middle of the shifted transform, times `factor`."""
    found = torch.fft.fftshift(torch.fft.fftn(x, dim=(-2, -1)), dim=(-2, -1))
    window = torch.ones(x.shape[-2:])
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    window[row - 1 : row + 1, column - 1 : column + 1] = factor
    return torch.fft.ifftn(torch.fft.ifftshift(found * window, dim=(-2, -1)), dim=(-2, -1)).real


class UNet(nn.Module):
    def __init__(self, width, mult, n, attends, head, tokens_dim):
        super().__init__()
        emb = 4 * width
        self.width, self.time_embed = width, nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        res = lambda a, b: Residual(a, b, emb, True)
        attend = lambda c: [Space(c, c // head, tokens_dim, 0), Time(c, c // head, c, None, conv=True)]
        stage = lambda a, b, level: [res(a, b), *(attend(b) if attends[level] else [])]
        stem = Time(width, STEM_HEADS, STEM_HEADS * head, None, conv=True)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, width, 3, padding=1), stem])])
        skips, c = [width], width
        for level, m in enumerate(mult):
            for _ in range(n):
                self.input_blocks.append(nn.ModuleList(stage(c, m * width, level)))
                c = m * width
                skips.append(c)
            if level < len(mult) - 1:
                self.input_blocks.append(Down(c, border=2))
                skips.append(c)
        self.middle_block = nn.ModuleList([res(c, c), *attend(c), res(c, c)])
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(mult))):
            for i in range(n + 1):
                layers = stage(c + skips.pop(), mult[level] * width, level)
                c = mult[level] * width
                self.output_blocks.append(nn.ModuleList([*layers, *([Up(c, cut=1)] if level and i == n else [])]))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, c), nn.SiLU(), nn.Conv2d(c, 4, 3, padding=1))

    def forward(self, x, t, tokens):  # [b, t, c, h, w]
        half = self.width // 2
        angles = t[:, None].float() * torch.exp(-math.log(1e4) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1))
        conv, stem = self.input_blocks[0]
        skips = [stem(conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]), emb, tokens)]
        for layers in self.input_blocks[1:]:
            h = skips[-1]
            for layer in layers if isinstance(layers, nn.ModuleList) else [layers]:
                h = layer(h, emb, tokens)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb, tokens)
        for i, layers in enumerate(self.output_blocks):
            skip = skips.pop()
            if i < len(FACTORS):
                more = torch.where(torch.arange(h.shape[2]) < h.shape[2] // 2, FACTORS[i][0], 1.0)
                h, skip = h * more[:, None, None], lower(skip, FACTORS[i][1])
            h = torch.cat([h, skip], 2)
            for layer in layers:
                h = layer(h, emb, tokens)
        return self.out(h.flatten(0, 1)).unflatten(0, h.shape[:2])


def cosine_sigmas():
    """Of the way back to noise."""
    bar = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = [min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)]
    return torch.sqrt(1 - torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)).float()


def shifted_sigmas(low=2.0, high=4.0, limit=15.0):
    """Of sampling."""
    first, last = (math.atan(math.exp(-0.5 * logsnr)) for logsnr in (limit, -limit))
    share = torch.linspace(0, 1, 1000, dtype=torch.float64)
    base = -2 * torch.log(torch.tan(first + share * (last - first)))
    shifted = (1 - share) * (base - 2 * math.log(low)) + share * (base - 2 * math.log(high))
    return torch.sqrt(torch.sigmoid(-shifted)).float()


def go_back(predict, x, steps, entries=700):
    """From clean latents to entry 699, v of the network at each step's start."""
    sigmas = cosine_sigmas()
    alphas = torch.sqrt(1 - sigmas**2)
    stride = entries // steps
    for t in range(0, entries, stride):
        s, v = min(t + stride, entries - 1), predict(x, t)
        x0 = alphas[t] * x - sigmas[t] * v
        x = alphas[s] * x0 + sigmas[s] * (x - alphas[t] * x0) / sigmas[t]
    return x


def go_forth(predict, noise, steps, draw, entries=700):
    """SDE-DPM-Solver++ (2M) over sigma / alpha from entry 699; `draw(i)` is the noise of the i-th step, `predict` what
    the guided network says of a time that is rounded to an entry."""
    sigmas = shifted_sigmas()
    logs = torch.log(sigmas / torch.sqrt(1 - sigmas**2))
    times = [entries - 1 - i * entries / (steps + 1) for i in range(steps)]
    between = lambda t: torch.lerp(logs[int(t)], logs[min(int(t) + 1, 999)], t % 1).exp()
    ratios = [*map(between, times), torch.zeros(())]
    x, older, h_last = noise * ratios[0], None, None
    for i, t in enumerate(times):
        now, then, at = ratios[i], ratios[i + 1], round(t)
        xt = x / torch.sqrt(1 + now**2)
        x0 = torch.sqrt(1 - sigmas[at] ** 2) * xt - sigmas[at] * predict(xt, at)
        if not then:
            return x0
        h = now.log() - then.log()
        ahead = x0 if older is None else x0 + h / h_last / 2 * (x0 - older)
        x = then / now * torch.exp(-h) * x - torch.expm1(-2 * h) * ahead
        x = x + then * torch.sqrt(-torch.expm1(-2 * h)) * draw(i)
        older, h_last = x0, h
    return x
