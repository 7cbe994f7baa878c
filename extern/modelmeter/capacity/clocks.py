"""Clocks of capacity questions: a device's roofline, the same at a stated efficiency, or any other time model."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve, field, frozen

from modelmeter.binding import Binding
from modelmeter.capacity.checks import require_fraction
from modelmeter.capacity.errors import CapacityError
from modelmeter.categories import Category
from modelmeter.costs import Time
from modelmeter.devices import DeviceSpec
from modelmeter.model import AnalyticModel
from modelmeter.predict.roofline import Roofline
from modelmeter.predict.time_model import PredictionFacts, TimeModel
from modelmeter.workload import StageRun


def _checked_efficiency(_owner: object, _attribute: object, value: object) -> None:
    require_fraction(value, "efficiency, the share of every peak that a device is assumed to reach,")


@frozen(kw_only=True)
class AtEfficiency:
    """A roofline whose device reaches a fraction of every peak: an assumption, neither a bound nor a measurement.

    Examples
    --------
    >>> from modelmeter.devices import load_device
    >>> AtEfficiency(roofline=Roofline(device=load_device("l4")), efficiency=0.6).facts.method
    'datasheet roofline at an assumed 0.6 of every peak'
    """

    roofline: Roofline
    efficiency: float = field(validator=_checked_efficiency)  # above 0, up to 1

    @property
    def facts(self) -> PredictionFacts:
        """The roofline's facts with the assumption in their method."""
        return evolve(
            self.roofline.facts, method=f"datasheet roofline at an assumed {self.efficiency:.4g} of every peak"
        )

    def times(self, model: AnalyticModel, run: StageRun, binding: Binding) -> Mapping[tuple[str, Category], Time]:
        """Return the roofline's times over the efficiency."""
        scale = 1 / self.efficiency
        return {key: time * scale for key, time in self.roofline.times(model, run, binding).items()}


def clock_of(time: DeviceSpec | TimeModel, *, efficiency: float | None = None) -> TimeModel:
    """Return what predicts times: a time model itself, of a device its roofline.

    Parameters
    ----------
    time : DeviceSpec or TimeModel
        A device stands for its datasheet roofline: a bound that no run reaches.
    efficiency : float, optional
        Fraction of every peak that a device is assumed to reach.

    Raises
    ------
    CapacityError
        When the efficiency is no fraction, or is given with a time model.

    Examples
    --------
    >>> from modelmeter.devices import load_device
    >>> clock_of(load_device("h200")).facts.method
    'datasheet roofline, not calibrated'
    """
    if isinstance(time, DeviceSpec):
        roofline = Roofline(device=time)
        return roofline if efficiency is None else AtEfficiency(roofline=roofline, efficiency=efficiency)
    if efficiency is not None:
        raise CapacityError(
            f"efficiency {efficiency} scales the roofline of a device; times by {time.facts.method} on "
            f"{time.facts.device.name} are predictions already. Leave it out, or give a device"
        )
    return time


def statement(clock: TimeModel) -> str:
    """Say what the times of a clock are.

    Examples
    --------
    >>> from modelmeter.devices import load_device
    >>> statement(clock_of(load_device("h200")))
    'times: datasheet roofline, not calibrated: a bound that no run reaches; launches and host work are left out'
    """
    method = clock.facts.method
    if isinstance(clock, Roofline):
        return f"times: {method}: a bound that no run reaches; launches and host work are left out"
    if isinstance(clock, AtEfficiency):
        return f"times: {method}, no measurement; launches and host work are left out"
    source = "; ".join(f"{key}: {value}" for key, value in clock.facts.source.items())
    return f"times: predicted by {method}, runtime {clock.facts.runtime} ({source})"
