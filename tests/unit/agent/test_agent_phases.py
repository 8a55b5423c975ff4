import numpy as np
import pytest
import torch

from bluesky_cdi.agent.acquisition import Batch
from bluesky_cdi.agent.audit import GainAudit
from bluesky_cdi.agent.field import FILL_GAP, Field
from bluesky_cdi.agent.learner import Learner
from bluesky_cdi.agent.observations import Observations
from bluesky_cdi.agent.outcomes import LOG_UNCERTAINTY, candidate_weights, predict_not_vacuum
from bluesky_cdi.agent.phases import AgentState, Gains, adapt, choose, nothing
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.agent.surrogate import Hyperparameters, matern52

torch.set_num_threads(1)
WIDTH, HALF = 0.5e-6, 1.5e-6
KERNEL = Hyperparameters((1.1, 0.9), 0.7, 0.05)
# Scattered, so that no two candidates are worth the same.
CANDIDATES = np.random.default_rng(8).uniform(-HALF, HALF, (300, 2))


def state_of(alpha=0.6, share=0.0, audit=None, keep_out_m=()):
    """What an agent has at first."""
    space, rng = SearchSpace(CANDIDATES), np.random.default_rng(0)
    return AgentState(
        field=Field(space, WIDTH, keep_out_m),
        observations=Observations(space.spacing_m / 2),
        learner=Learner(CANDIDATES, WIDTH, rng, refit=False, hyperparameters=KERNEL),
        audit=audit or GainAudit(),
        gains=Gains(alpha, share),
        rng=rng,
    )


def lattice(step_m=0.45e-6):
    axis = np.arange(-HALF, HALF + step_m / 2, step_m)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def frames_at(positions_m, first=1):
    """Measured points: structure in the upper half, more noise on the right."""
    rng = np.random.default_rng(len(positions_m))
    uncertainty = np.where(positions_m[:, 1] > 0, 0.1, 0.05) * np.exp(0.1 * rng.standard_normal(len(positions_m)))
    structure = np.hypot(1.4 * uncertainty, np.where(positions_m[:, 0] > 0, 0.4, 0.0))
    return [
        {"seq_num": first + k, "y": y, "x": x, "uncertainty": u, "structure": s, "embedding": np.array([s, u])}
        for k, ((y, x), u, s) in enumerate(zip(positions_m, uncertainty, structure, strict=True))
    ]


def measure(state, points):
    state.observations.take(points)
    state.field.take(state.observations)


def send(state, index):
    """Candidates on their way; their ids."""
    ids = state.observations.issue(CANDIDATES[index])
    state.field.visit(index)
    state.candidate_of.update(zip(ids, index.tolist(), strict=True))
    return ids


def share_lit(candidates_m):
    """What a frame at each candidate takes of the dark at each other, cut at three sigma."""
    square = ((candidates_m[:, None] - candidates_m[None]) ** 2).sum(axis=2)
    sigma = WIDTH / np.sqrt(8 * np.log(2))
    return np.where(square <= 9 * sigma**2, 1 - np.exp(-np.exp(-square / (2 * sigma**2))), 0.0)


def dark_after(positions_m):
    square = ((CANDIDATES[:, None] - positions_m[None]) ** 2).sum(axis=2)
    sigma = WIDTH / np.sqrt(8 * np.log(2))
    return np.exp(-np.exp(-square / (2 * sigma**2)).sum(axis=1))


def nearest_m(positions_m):
    return np.linalg.norm(CANDIDATES[:, None] - positions_m[None], axis=2).min(axis=1)


def adapted_one_by_one(positions_m, targets, pending, is_open, n, alpha, n_coverage):
    """The greedy batch from whole matrices in float64: index, gains learned and covered, and what was predicted."""

    def kernel(a, b):
        return matern52(torch.as_tensor(a / WIDTH), torch.as_tensor(b / WIDTH), KERNEL).numpy()

    noisy = kernel(positions_m, positions_m) + KERNEL.noise * np.eye(len(positions_m))
    cross = kernel(positions_m, CANDIDATES)
    mean = cross.T @ np.linalg.solve(noisy, targets.values)
    covariance = kernel(CANDIDATES, CANDIDATES) - cross.T @ np.linalg.solve(noisy, cross)
    not_vacuum = predict_not_vacuum(mean, np.diagonal(covariance), targets)
    weights = candidate_weights(not_vacuum, mean[:, LOG_UNCERTAINTY] * targets.scale[LOG_UNCERTAINTY])
    weights /= weights.sum()

    def after(covariance, candidate):
        column = covariance[candidate]
        return covariance - np.outer(column, column) / (column[candidate] + KERNEL.noise)

    for candidate in pending:
        covariance = after(covariance, candidate)
    everything = np.concatenate([positions_m, CANDIDATES[pending]])
    dark, share = dark_after(everything), share_lit(CANDIDATES)
    is_open = is_open & (nearest_m(everything) <= WIDTH)
    index, learned, covered, best = [], [], [], None
    for k in range(n):
        gain = weights @ covariance**2 / (np.diagonal(covariance) + KERNEL.noise) / KERNEL.outputscale
        lit = share @ dark / len(CANDIDATES)
        best = best or (gain[is_open].max(), lit[is_open].max())
        value = lit if k >= n - n_coverage else alpha * gain / best[0] + (1 - alpha) * lit / best[1]
        chosen = int(np.argmax(np.where(is_open, value, -1.0)))
        index.append(chosen)
        learned.append(gain[chosen] / best[0])
        covered.append(lit[chosen] / best[1])
        is_open[chosen], covariance, dark = False, after(covariance, chosen), dark * (1 - share[chosen])
    return index, np.array(learned), np.array(covered), not_vacuum[index]


@pytest.mark.parametrize(("alpha", "share"), [(0.6, 0.0), (0.2, 0.26), (1.0, 0.5), (0.0, 0.0)])
def test_an_adaptive_batch_is_that_of_whole_matrices_chosen_one_by_one(alpha, share):
    state, frames = state_of(alpha, share, keep_out_m=[((0.2e-6, 0.2e-6), (0.7e-6, 0.7e-6))]), lattice()
    measure(state, frames_at(frames))
    pending = np.array([17, 180, 42])
    send(state, pending)
    is_open = state.field.is_open.copy()
    choice = choose(state, 8)
    targets = state.learner.targets(state.observations)
    index, learned, covered, not_vacuum = adapted_one_by_one(
        frames, targets, pending, is_open, 8, alpha, n_coverage=int(8 * share)
    )
    assert (choice.reason, choice.acquisition) == ("adapt", "variance reduction + coverage")
    assert choice.index.tolist() == index
    gain = alpha * learned + (1 - alpha) * covered
    np.testing.assert_allclose(choice.gain, gain, rtol=2e-3)
    np.testing.assert_allclose(choice.not_vacuum, not_vacuum, rtol=2e-3)
    np.testing.assert_allclose(state.gains.of_batches, [gain.mean()], rtol=2e-3)


def test_the_share_of_coverage_is_carried_from_batch_to_batch():
    """A quarter of two positions is none in the first batch and one in the second."""
    state, frames = state_of(alpha=1.0, share=0.25), lattice()
    measure(state, frames_at(frames))
    targets = state.learner.targets(state.observations)
    pending, due = np.empty(0, np.int64), []
    for _ in range(4):
        choice = choose(state, 2)
        is_open = np.ones(len(CANDIDATES), bool)
        is_open[pending] = False
        options = {count: adapted_one_by_one(frames, targets, pending, is_open, 2, 1.0, count)[0] for count in (0, 1)}
        assert options[0] != options[1]
        (count,) = (count for count, index in options.items() if index == choice.index.tolist())
        due.append(count)
        send(state, choice.index)
        pending = np.concatenate([pending, choice.index])
    assert due == [0, 1, 0, 1]


def test_later_batches_are_weighed_against_the_first():
    state = state_of()
    measure(state, frames_at(lattice()))
    for _ in range(6):
        send(state, choose(state, 12).index)
    assert len(state.gains.of_batches) == 6
    # What is pending counts as measured, so less and less is left to gain.
    assert (np.diff(state.gains.of_batches) < 0).all() and state.gains.of_batches[-1] < 0.5


def test_an_adaptive_frame_overlaps_another():
    state = state_of()
    measure(state, frames_at(lattice()))
    targets = state.learner.targets(state.observations)
    posterior = state.learner.posterior(state.observations.positions_m, targets)
    nearest = np.where(CANDIDATES[:, 0] > 0, 1.01 * WIDTH, WIDTH)  # nearly all there is to learn lies out of reach
    assert (CANDIDATES[adapt(state, 10, np.zeros(300), posterior, targets).index, 0] > 0).mean() > 0.5
    assert (CANDIDATES[adapt(state, 10, nearest, posterior, targets).index, 0] < 0).all()


def farthest_one_by_one(positions_m, is_open, n, gap_m=0.0):
    nearest, index = np.where(is_open, nearest_m(positions_m), -1.0), []
    while len(index) < n and nearest.max() > gap_m:
        index.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(CANDIDATES - CANDIDATES[index[-1]], axis=1))
        nearest[index] = -1.0
    return index


def coverage_gains(positions_m, index):
    dark, share, gains = dark_after(positions_m), share_lit(CANDIDATES), []
    for candidate in index:
        gains.append(share[candidate] @ dark / len(dark))
        dark = dark * (1 - share[candidate])
    return gains


def test_a_gap_is_filled_farthest_first_and_pending_positions_count():
    state, box = state_of(keep_out_m=[((-HALF, -HALF), (-1e-6, -1e-6))]), lattice()[:20]
    measure(state, frames_at(box))
    pending = np.array([3, 77, 150, 201])
    send(state, pending)
    is_open, known = state.field.is_open.copy(), np.concatenate([box, CANDIDATES[pending]])
    for n in (5, 300):
        choice = choose(state, n)
        index = farthest_one_by_one(known, is_open, n, FILL_GAP * WIDTH)
        assert (choice.reason, choice.acquisition, choice.not_vacuum) == ("fill", "farthest first", None)
        assert choice.index.tolist() == index
        np.testing.assert_allclose(choice.gain, coverage_gains(known, index))
    assert 5 < len(index) < 100  # it stops where no gap is left
    send(state, choice.index)
    # What is on its way leaves no gap; there are twenty outcomes to learn from.
    assert choose(state, 5).reason == "adapt"


def test_the_last_positions_are_chosen_once():
    state = state_of()
    measure(state, frames_at(lattice())[:7])
    chosen = []
    for n in (100, 400):  # without outcomes enough, the field is filled and then covered on
        choice = choose(state, n)
        send(state, choice.index)
        assert choice.reason == "fill"
        chosen += choice.index.tolist()
    assert sorted(chosen) == list(range(300)) and len(choose(state, 1).index) == 0


@pytest.mark.parametrize(("n_usable", "reason"), [(0, "fill"), (7, "fill"), (8, "adapt")])
def test_fewer_than_eight_outcomes_teach_nothing(n_usable, reason):
    state, frames = state_of(), lattice()
    points = frames_at(frames)
    for point in points[n_usable:]:
        point["uncertainty"] = np.nan
    measure(state, points)
    choice = choose(state, 6)
    assert choice.reason == reason
    if reason == "fill":  # with no gap left, it goes on all the same
        assert choice.index.tolist() == farthest_one_by_one(frames, np.ones(len(CANDIDATES), bool), 6)


def test_a_failed_audit_leaves_coverage_only():
    audit, ones = GainAudit(), np.ones((8, 1))
    state, frames = state_of(audit=audit), lattice()
    measure(state, frames_at(frames))
    for _ in range(2):
        assert choose(state, 6).reason == "adapt"
        audit.compare(np.ones(8), np.zeros(8), ones)
    choice = choose(state, 6)
    assert (choice.reason, choice.acquisition, choice.not_vacuum) == ("coverage (audit)", "farthest first", None)
    assert choice.index.tolist() == farthest_one_by_one(frames, np.ones(len(CANDIDATES), bool), 6)


def test_frames_that_show_not_what_was_expected_end_adaptation():
    for is_honest in (True, False):
        state = state_of()
        measure(state, frames_at(lattice()))
        reasons, first = [], 1000
        for _ in range(4):
            choice = choose(state, 8)
            reasons.append(choice.reason)
            ids = send(state, choice.index)
            shown = frames_at(CANDIDATES[choice.index], first)
            first += 8
            measure(state, [{**point, "_id": key} for point, key in zip(shown, ids, strict=True)])
            state.audit.expect(ids, choice.not_vacuum if is_honest else np.full(8, 0.01))
        assert ("coverage (audit)" in reasons) is not is_honest


def test_nothing_is_chosen_for_a_reason():
    choice = nothing("enough")
    assert (choice.reason, choice.acquisition, choice.not_vacuum) == ("enough", "none", None)
    assert choice.index.shape == choice.gain.shape == (0,) and choice.index.dtype == np.int64


@pytest.mark.parametrize(("share", "n"), [(0.1, 16), (0.1, 3), (0.35, 5), (0.0, 8), (1.0, 4)])
def test_share_of_coverage_is_kept_over_batches(share, n):
    gains = Gains(0.6, share)
    due = [gains.coverage_due(n) for _ in range(40)]
    assert all(0 <= d <= n for d in due)
    # Fractions carry over: never more than one position off, and never ahead.
    np.testing.assert_array_equal(np.cumsum(due), np.floor(share * n * np.arange(1, 41) + 1e-6))


def test_share_of_coverage_is_kept_over_batches_of_any_size():
    sizes = np.random.default_rng(0).integers(1, 30, 200)
    gains = Gains(0.6, 0.17)
    due = [gains.coverage_due(int(n)) for n in sizes]
    np.testing.assert_array_equal(np.cumsum(due), np.floor(0.17 * np.cumsum(sizes) + 1e-6))
    # A tenth of ten is one although 0.1 * 10 in ten parts falls short of it by rounding.
    tenths = Gains(0.6, 0.1)
    assert [tenths.coverage_due(1) for _ in range(20)] == ([0] * 9 + [1]) * 2


def test_gains_are_weighed_against_the_first_batchs_best():
    gains = Gains(0.25, 0.1)
    first = Batch(np.array([3, 4]), np.array([2.0, 1.0]), np.array([0.4, 0.2]), 2.0, 0.8)
    later = Batch(np.array([5]), np.array([0.5]), np.array([0.1]), 0.5, 0.1)
    np.testing.assert_allclose(gains.weigh(first), [0.25 * 1.0 + 0.75 * 0.5, 0.25 * 0.5 + 0.75 * 0.25])
    np.testing.assert_allclose(gains.weigh(later), [0.25 * 0.25 + 0.75 * 0.125])
    np.testing.assert_allclose(gains.of_batches, [0.46875, 0.15625])
