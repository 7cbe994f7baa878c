"""Whose time it is when a device waits for its host: worked by hand, and laws that hold for any times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.timing.completion import completion_shares


@pytest.mark.parametrize(
    ("host", "device", "shares"),
    [
        # The device is never done before the host comes with more: kernels alone, back to back from 0 on.
        ([1.0, 1.0, 1.0], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0]),
        # Kernels from 2 to 3, 5 to 6 and 8 to 9, each as the host leaves its call; the rest of each call is a wait.
        ([3.0, 3.0, 3.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]),
        # The first kernel runs from 0 to 4. The host is in the view from 1 to 6: the device waits for it from 4 to 6.
        # Then from 6 to 8 the last one, two of the ten seconds of the host's call; the device waits for the other 8.
        ([1.0, 5.0, 10.0], [4.0, 0.0, 2.0], [4.0, 2.0, 10.0]),
        # The second call waits for the first one's kernel, from 0 to 9, and for its own, from 9 to 10; then it goes on.
        ([1.0, 10.0, 2.0], [9.0, 1.0, 2.0], [9.0, 2.0, 2.0]),
        # Nothing runs on the device: all is the host's.
        ([1.0, 2.0], [0.0, 0.0], [1.0, 2.0]),
        # After the last kernel, from 0 to 1, the host still makes two views.
        ([1.0, 2.0, 3.0], [1.0, 0.0, 0.0], [1.0, 2.0, 3.0]),
        ([], [], []),
    ],
)
def test_idle_time_is_the_hosts_call(host: list[float], device: list[float], shares: list[float]) -> None:
    """Kernels count for their call; what the device waits counts for the call that the host is in meanwhile."""
    assert completion_shares(host, device) == pytest.approx(shares)


seconds = st.floats(0, 1e3)


@given(st.lists(st.tuples(seconds, seconds), max_size=30))
def test_shares_add_up_and_contain_the_kernels(calls: list[tuple[float, float]]) -> None:
    """Law: no share is below its kernels; together they are neither below what host or device need, nor above both."""
    host, device = [call[0] for call in calls], [call[1] for call in calls]
    shares = completion_shares(host, device)
    assert all(share >= kernels - 1e-9 for share, kernels in zip(shares, device, strict=True))
    assert sum(shares) >= max(sum(host), sum(device)) - 1e-6
    assert sum(shares) <= sum(host) + sum(device) + 1e-6


@given(st.lists(seconds, min_size=1, max_size=30), st.floats(0.1, 10))
def test_a_slower_host_and_device_scale_the_shares(calls: list[float], factor: float) -> None:
    """Law: there is no unit in it; twice as slow is twice the shares."""
    once = completion_shares(calls, calls[::-1])
    scaled = completion_shares([factor * each for each in calls], [factor * each for each in reversed(calls)])
    assert np.allclose(scaled, np.array(once) * factor, rtol=1e-9, atol=1e-9)


def test_times_of_different_calls_are_refused() -> None:
    """Two passes that saw different calls cannot be put together."""
    with pytest.raises(ValueError, match="argument"):
        completion_shares([1.0, 2.0], [1.0])
