"""The instruments of Alice's emulated bench: real drivers and a controller, over ports."""

from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import msgspec
import pytest
import trio
from daemons_support import SMALL_LINK
from qnode_drivers.open_protocol_transmitter import OpenTransmitter, OpenTransmitterConfig
from qnode_drivers.optilab_bcb4 import OptilabBcb4, OptilabBcb4Config
from qnode_drivers.oz_dd100 import OzDd100, OzDd100Config
from qnode_drivers.scpi_power_meter import ScpiPowerMeter, ScpiPowerMeterConfig

from qnode.choices import ControllerState
from qnode.config import DeviceSection, SiteConfig, SourceParameters, load
from qnode.config.calibration import CalibrationSection, IntensitySection
from qnode.config.monitors import MonitorsSection
from qnode.emulate.beam import Beam
from qnode.emulate.bench import (
    AttenuatorOnBench,
    BenchDevice,
    BiasControllerOnBench,
    PowerMeterOnBench,
    TransmitterOnBench,
)
from qnode.emulate.open_protocol_transmitter import OpenTransmitterEmulator
from qnode.emulate.ports import Emulator, pty_port
from qnode.node.calibration.controllers import Controllers
from qnode.node.calibration.instruments import Instruments
from qnode.node.monitoring.watch import MonitorWatch
from qnode.node.status.link_figures import LinkFigures
from qnode.operate.status.model import ControllerStatus
from qnode.simulate.light import arriving_light
from qnode.simulate.parameters import Change, SimulationParameters

TOP = Path(__file__).parent.parent
ALICE = load(TOP / "config" / "alice.toml", SiteConfig)
SIMULATION = msgspec.convert(SMALL_LINK["simulation"], SimulationParameters)
PATIENCE_S = 120.0


async def no_block() -> int:
    return 0


class AliceBench:
    """Alice's transmitter with instruments behind it, each on a pseudo-terminal with its driver."""

    def __init__(
        self, folder: Path, stack: AsyncExitStack, simulation: SimulationParameters = SIMULATION
    ) -> None:
        self._simulation = simulation
        self._at = {"fibre": str(folder / "fibre"), "port": "unused"}
        self._stack = stack
        self.beam = Beam()
        self.source = SourceParameters(mu_uncertainty=(0.02, 0.02))

    async def put(self, kind: type[BenchDevice], serial_number: str) -> tuple[Emulator, str]:
        """Return the emulator, and the address of its port."""
        device = msgspec.convert(
            {"kind": kind.__struct_config__.tag, "serial_number": serial_number, **self._at}, kind
        )
        if isinstance(device, TransmitterOnBench):
            device = msgspec.structs.replace(device, source=self.source, simulation=self._simulation)
        emulator = await self._stack.enter_async_context(device.emulator(self.beam))
        return emulator, f"serial://{await self._stack.enter_async_context(pty_port(emulator))}"

    async def transmitter(self) -> OpenTransmitterEmulator:
        """Put the transmitter there, open it and begin to send."""
        emulator, address = await self.put(TransmitterOnBench, "E-TX-1")
        assert isinstance(emulator, OpenTransmitterEmulator)
        source = self.source
        config = OpenTransmitterConfig(
            address=address, qubit_rate_hz=source.qubit_rate_hz, p_z=source.p_z, p=source.p,
            bin_spacing_ps=round(source.bin_spacing_ps), levels=(1.0, source.mu[1] / source.mu[0]),
        )  # fmt: skip
        driver = await self._stack.enter_async_context(OpenTransmitter.open(config))
        runs = await self._stack.enter_async_context(aclosing(driver.runs()))
        await anext(runs)
        return emulator


def brightness(emulator: OpenTransmitterEmulator) -> float:
    """Return the light at Bob's Z detector, as a fraction of that with the nominal intensities."""
    assert emulator.end is not None
    nominal = arriving_light(SIMULATION, ALICE.link, SIMULATION.first_settings())
    present = arriving_light(SIMULATION, ALICE.link, emulator.end.in_force)
    return float(present[0, 0] / nominal[0, 0])


async def test_light_comes_when_the_controller_lowers_the_attenuator_and_a_step_of_the_laser_is_followed(
    tmp_path: Path,
) -> None:
    section = IntensitySection(
        attenuator="voa", monitor="meter", start_db=21.0, period_s=0.1, largest_step_db=1.0
    )
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(PATIENCE_S))
        bench = AliceBench(tmp_path, stack)
        _, voa_address = await bench.put(AttenuatorOnBench, "V-1")
        _, meter_address = await bench.put(PowerMeterOnBench, "M-1")
        voa = await stack.enter_async_context(
            OzDd100.open(OzDd100Config(address=voa_address, identity="V-1"))
        )
        meter = await stack.enter_async_context(
            ScpiPowerMeter.open(ScpiPowerMeterConfig(address=meter_address, identity="M-1"))
        )
        transmitter = await bench.transmitter()
        assert await voa.attenuation_db() == 60.0
        assert brightness(transmitter) == pytest.approx(1e-4)
        assert await meter.power_w() == pytest.approx(1e-10)

        config = msgspec.structs.replace(
            ALICE,
            link=msgspec.structs.replace(ALICE.link, source=bench.source),
            devices={
                "voa": DeviceSection(driver="oz-dd100"),
                "meter": DeviceSection(driver="scpi-power-meter"),
            },
            calibration=CalibrationSection(intensity=section),
        )
        figures, instruments, watch = LinkFigures(config), Instruments(), MonitorWatch(MonitorsSection())
        controllers = Controllers(
            config, figures, instruments, adjustments=None, watch=watch, last_block=no_block
        )

        def status() -> ControllerStatus:
            (found,) = controllers.status()
            return found

        async def settled(attenuation_db: float) -> None:
            def holds() -> bool:
                following = status().state.state == ControllerState.FOLLOWING
                return following and status().setting == pytest.approx(attenuation_db, abs=0.03)

            while not holds():  # noqa: ASYNC110
                await trio.sleep(0.05)  # the controller works in real time
            assert await voa.attenuation_db() == pytest.approx(attenuation_db, abs=0.03)
            assert await meter.power_w() == pytest.approx(1e-6, rel=0.02)
            assert brightness(transmitter) == pytest.approx(1.0, rel=0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(instruments.keep, "voa", voa, 10.0, trio.sleep_forever)
            nursery.start_soon(instruments.keep, "meter", meter, 10.0, trio.sleep_forever)
            nursery.start_soon(controllers.run)
            await settled(20.0)
            assert transmitter.end is not None
            await transmitter.end.change(Change(source_attenuation_db=0.5))  # the laser gets weaker
            await settled(19.5)
            nursery.cancel_scope.cancel()


async def test_a_schedule_stays_in_force_where_no_instrument_sets_anything_else(tmp_path: Path) -> None:
    dark = ({"at_s": 0.0, "source_on": False, "modulator_bias_rad": 0.2},)
    simulation = msgspec.convert({**SMALL_LINK["simulation"], "schedule": dark}, SimulationParameters)
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(PATIENCE_S))
        bench = AliceBench(tmp_path, stack, simulation)
        await bench.put(AttenuatorOnBench, "V-1")
        transmitter = await bench.transmitter()
        assert transmitter.end is not None
        settings = transmitter.end.in_force
        assert (settings.source_on, settings.modulator_bias_rad, settings.attenuator_db) == (False, 0.2, 40.0)
        assert transmitter.power_w() == 0.0


async def test_a_bias_controller_moves_the_modulator_of_the_transmitter(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(PATIENCE_S))
        bench = AliceBench(tmp_path, stack)
        _, address = await bench.put(BiasControllerOnBench, "B-1")
        transmitter = await bench.transmitter()
        opened = OptilabBcb4Config(address=address, identity="B-1", point="minimum")
        async with OptilabBcb4.open(opened) as bias:
            assert transmitter.end is not None
            best_v = await bias.bias_v()
            assert transmitter.end.in_force.modulator_bias_rad == pytest.approx(0.0, abs=1e-3)
            await bias.set_bias_v(best_v + 0.5)  # a tenth of the half-wave voltage
            assert transmitter.end.in_force.modulator_bias_rad == pytest.approx(0.314, abs=1e-3)
