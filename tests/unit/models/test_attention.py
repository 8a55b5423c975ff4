"""Attention on grids: nothing before it learns, displacements alone count, windows bound its reach."""

from dataclasses import replace

import pytest
import torch

from bluesky_cdi.models import attention as module
from bluesky_cdi.models.attention import HEAD_CHANNELS, WINDOW, GridAttention, rotated, window_side
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.training.stream import SceneShape, SceneStream

PLAIN = UnrolledConfig(stages=2, channels=16, levels=2)


def trained(channels=32):
    """Attention whose last layers have learned something."""
    torch.manual_seed(3)
    block = GridAttention(channels).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def image(height, width, channels=32, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


@pytest.fixture
def batch():
    stream = SceneStream(torch.device("cpu"), 5, (1e4, 1e5), pool=8, object_px=48)
    return stream.draw(SceneShape(16, 36, (6, 6), 2, 1.0), exact=True)


def test_untrained_it_changes_nothing_bit_for_bit():
    x = image(7, 9).float()
    assert torch.equal(GridAttention(32)(x), x)


def test_a_network_goes_on_into_one_with_attention_bit_for_bit(batch):
    torch.manual_seed(1)
    plain = UnrolledNet(PLAIN)
    grown = UnrolledNet(replace(PLAIN, attention=True))
    grown.go_on_from(plain)
    for before, after in zip(plain(batch.probe, batch.data), grown(batch.probe, batch.data), strict=True):
        assert torch.equal(before, after)
    for before, after in zip(
        plain.judge(batch.truth, batch.probe, batch.data),
        grown.judge(batch.truth, batch.probe, batch.data),
        strict=True,
    ):
        assert torch.equal(before, after)
    with pytest.raises(ValueError, match="attention, scaled may be more"):
        plain.go_on_from(grown)


def test_attention_that_has_learned_goes_on_too(batch):
    config = replace(PLAIN, attention=True)
    torch.manual_seed(2)
    earlier, later = UnrolledNet(config), UnrolledNet(replace(config, stages=3))
    for parameter in earlier.stages[0].attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    later.go_on_from(earlier)
    for before, after in zip(earlier(batch.probe, batch.data), later(batch.probe, batch.data), strict=False):
        assert torch.equal(before, after)


@pytest.mark.parametrize("axis", ["row", "column"])
def test_only_displacements_count(axis):
    # The product of a query at a and a key at b, for all pairs that lie as far apart.
    rows, columns = 5, 6
    generator = torch.Generator().manual_seed(6)
    q, k = torch.randn(2, 1, 1, 1, HEAD_CHANNELS, generator=generator)
    everywhere = rotated(q.expand(1, 1, rows * columns, HEAD_CHANNELS), rows, columns)
    keys = rotated(k.expand(1, 1, rows * columns, HEAD_CHANNELS), rows, columns)
    products = (everywhere @ keys.transpose(-1, -2)).view(rows, columns, rows, columns)
    same = (
        [products[y, 1, y + 2, 4] for y in range(rows - 2)]
        if axis == "row"
        else [products[1, x, 3, x + 3] for x in range(columns - 3)]
    )
    torch.testing.assert_close(torch.stack(same), same[0].expand(len(same)), rtol=1e-5, atol=1e-5)
    # And they do count.
    assert abs(float(products[0, 0, 0, 0] - products[0, 0, 3, 3])) > 1e-2


def test_it_is_the_attention_of_the_textbook():
    block, x = trained(HEAD_CHANNELS), image(3, 4, HEAD_CHANNELS)
    tokens = x.flatten(2).transpose(1, 2)  # (B, n, C)
    q, k, v = block.qkv(block.norm(tokens)).chunk(3, dim=-1)
    q, k = (rotated(each[:, None], 3, 4)[:, 0] for each in (q, k))
    weights = torch.softmax(q @ k.transpose(-1, -2) / HEAD_CHANNELS**0.5, dim=-1)
    tokens = tokens + block.mix(weights @ v)
    tokens = tokens + block.narrow(torch.nn.functional.gelu(block.widen(block.second_norm(tokens))))
    expected = tokens.transpose(1, 2).unflatten(2, (3, 4))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_windows_are_at_most_their_size_and_nearly_equal():
    sides = {tokens: window_side(tokens) for tokens in (1, 6, 31, 32, 33, 35, 64, 65, 129, 256)}
    assert sides == {1: 1, 6: 6, 31: 31, 32: 32, 33: 17, 35: 18, 64: 32, 65: 22, 129: 26, 256: 32}
    assert max(sides.values()) <= WINDOW


def test_a_large_grid_is_its_windows(monkeypatch):
    # 8 x 12 tokens in windows of 4 x 4, against each window alone.
    monkeypatch.setattr(module, "WINDOW", 4)
    block, x = trained(), image(8, 12)
    whole = block(x)
    for row in range(0, 8, 4):
        for column in range(0, 12, 4):
            here = (..., slice(row, row + 4), slice(column, column + 4))
            torch.testing.assert_close(whole[here], block(x[here]))


def test_a_shift_by_whole_windows_shifts_the_result(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)
    block, x = trained(), image(8, 12)
    torch.testing.assert_close(block(x.roll((4, 8), (2, 3))), block(x).roll((4, 8), (2, 3)))


def test_what_fills_the_last_windows_up_is_not_seen(monkeypatch):
    # 5 tokens in windows of 3: the second has two, as alone.
    monkeypatch.setattr(module, "WINDOW", 4)
    block, x = trained(), image(5, 4)
    torch.testing.assert_close(block(x)[:, :, 3:], block(x[:, :, 3:]))


def test_the_cost_of_a_large_grid_grows_like_its_tokens(monkeypatch):
    # Numbers of query-key pairs that are asked for.
    pairs, real = [], torch.nn.functional.scaled_dot_product_attention

    def counted(q, k, v, attn_mask=None):
        pairs.append(q.shape[0] * q.shape[2] * k.shape[2])
        return real(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    block = GridAttention(HEAD_CHANNELS)
    for side in (32, 64, 128):
        block(torch.zeros(1, HEAD_CHANNELS, side, side))
    assert pairs == [32**4, 4 * 32**4, 16 * 32**4]


def test_channels_that_make_no_whole_head_are_refused():
    with pytest.raises(ValueError, match="multiple of 16 channels"):
        UnrolledNet(UnrolledConfig(channels=8, levels=1, attention=True))
