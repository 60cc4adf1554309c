"""Workloads beyond language models: a video decoder, a hash-grid field, a forecaster, a tagger and a U-Net."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrameDecoder(nn.Module):
    """An implicit video: the number of a frame goes in, the frame comes out, ``i64[B] -> f32[B, 3, 16, 16]``."""

    def __init__(self, frames: int = 64, bands: int = 6, width: int = 12) -> None:
        super().__init__()
        self.frames, self.width = frames, width
        self.register_buffer("bands", 1.25 ** torch.arange(bands, dtype=torch.float32) * math.pi)
        self.stem = nn.Sequential(
            nn.Linear(2 * bands, 32), nn.GELU(), nn.Linear(32, 4 * 4 * width), nn.GELU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width * 4, 3, padding=1), nn.PixelShuffle(2), nn.GELU())
            for _ in range(2)
        )
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, frame: Tensor) -> Tensor:
        phase = (frame.to(torch.float32) / self.frames)[:, None] * self.bands
        x = self.stem(torch.cat([phase.sin(), phase.cos()], -1)).view(-1, self.width, 4, 4)
        for block in self.blocks:
            x = block(x)
        return torch.sigmoid(self.head(x))


class HashGridField(nn.Module):
    """A field over the unit cube as grids of several resolutions, the fine ones hashed, ``f32[N, 3] -> f32[N, 4]``."""

    PRIMES = (1, 2654435761, 805459861)

    def __init__(self, levels: int = 4, entries: int = 256, features: int = 2) -> None:
        super().__init__()
        self.entries = entries
        self.resolutions = [int(4 * 1.7**level) for level in range(levels)]
        self.tables = nn.Parameter(torch.randn(levels, entries, features))
        corners = torch.tensor([[(i >> axis) & 1 for axis in range(3)] for i in range(8)])
        self.register_buffer("corners", corners)
        self.mlp = nn.Sequential(nn.Linear(levels * features, 16), nn.ReLU(), nn.Linear(16, 4))

    def place(self, cell: Tensor, resolution: int) -> Tensor:
        """Where the corners of cells stand in a table: row by row if that fits, else by a hash."""
        side = resolution + 1
        if side**3 <= self.entries:
            return cell[..., 0] + side * (cell[..., 1] + side * cell[..., 2])
        x, y, z = (cell[..., axis] * prime for axis, prime in enumerate(self.PRIMES))
        return (x ^ y ^ z) % self.entries

    def forward(self, points: Tensor) -> Tensor:
        found = []
        for level, resolution in enumerate(self.resolutions):
            scaled = points * resolution
            low = scaled.floor()
            inside = (scaled - low)[:, None, :]
            cell = low.long()[:, None, :] + self.corners
            weight = torch.where(self.corners == 1, inside, 1 - inside).prod(-1, keepdim=True)
            found.append((self.tables[level][self.place(cell, resolution)] * weight).sum(1))
        return self.mlp(torch.cat(found, -1))


class DecomposedLinear(nn.Module):
    """A linear forecaster: trend and rest in a cosine basis, channels apart, ``f32[B, 24, C] -> f32[B, 8, C]``."""

    def __init__(self, past: int = 24, future: int = 8, window: int = 5) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("analysis", cosine_basis(past))
        self.register_buffer("synthesis", cosine_basis(future))
        self.trend = nn.Linear(past, future)
        self.rest = nn.Linear(past, future)

    def forward(self, series: Tensor) -> Tensor:
        mean = series.mean(1, keepdim=True)
        deviation = torch.sqrt(series.var(1, keepdim=True, unbiased=False) + 1e-5)
        x = ((series - mean) / deviation).transpose(1, 2)
        padded = F.pad(x, (self.window // 2, self.window // 2), mode="replicate")
        slow = F.avg_pool1d(padded, self.window, stride=1)
        rest = (x - slow) @ self.analysis.T
        y = self.trend(slow) + self.rest(rest) @ self.synthesis
        return y.transpose(1, 2) * deviation + mean


def cosine_basis(n: int) -> Tensor:
    """The orthogonal matrix of the discrete cosine transform (type 2), a frequency in each row."""
    k, t = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (t + 0.5) * k / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.to(torch.float32)


class SequenceTagger(nn.Module):
    """A tag for each word from a two-layer LSTM in both directions, ``i64[B, T] -> f32[B, T, 7]``."""

    def __init__(self, vocabulary: int = 97, width: int = 16, hidden: int = 12, tags: int = 7) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, tags)

    def forward(self, words: Tensor) -> Tensor:
        return F.log_softmax(self.head(self.lstm(self.embed(words))[0]), -1)


class UNet(nn.Module):
    """Two levels down and up with skips, ``f32[B, 3, H, W] -> f32[B, 2, H, W]``; sides are multiples of 4."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = self.double(3, width), self.double(width, 2 * width)
        self.middle = self.double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = self.double(4 * width, 2 * width)
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2 * width, width, 1))
        self.join1 = self.double(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def double(inner: int, outer: int) -> nn.Sequential:
        """Two convolutions, one with batch and one with group normalisation."""
        return nn.Sequential(
            nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True),
            nn.Conv2d(outer, outer, 3, padding=1), nn.GroupNorm(4, outer), nn.SiLU(),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        first = self.down1(image)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.middle(F.max_pool2d(second, 2))
        x = self.join2(torch.cat([self.up2(x), second], 1))
        return self.head(self.join1(torch.cat([self.up1(x), first], 1)))
