"""The devices of one link: supervised, and each passed to the parts of the link that use it."""

from collections.abc import MutableMapping
from functools import partial
from typing import Never

import trio

from qnode.config import DeviceSection, SiteConfig
from qnode.devices.capabilities import capabilities_of
from qnode.devices.protocols import Device, Sensor, TagSource, Transmitter
from qnode.devices.status import DeviceStatus, Exchange
from qnode.devices.supervisor import supervise
from qnode.devices.transport.transcript import Transcript
from qnode.errors import ConfigError
from qnode.node.calibration.instruments import Instruments
from qnode.node.monitoring.randomness import DeviceRandomness
from qnode.node.monitoring.watch import MonitorWatch
from qnode.node.quantum.receiver import ClickReceiver
from qnode.node.quantum.transmitter_port import TransmitterPort


class LinkDevices:
    """The devices of ``config``, and their status.

    ``watch`` gets their readings, ``randomness`` the random numbers of its device, ``port`` Alice's
    transmitter, ``receiver`` Bob's source of tags.
    """

    def __init__(
        self,
        config: SiteConfig,
        watch: MonitorWatch,
        randomness: DeviceRandomness | None,
        port: TransmitterPort,
        receiver: ClickReceiver,
    ) -> None:
        self._config = config
        self._watch = watch
        self._randomness = randomness
        self._port = port
        self._receiver = receiver
        self.instruments = Instruments()
        self.board: MutableMapping[str, DeviceStatus] = {}
        """The status of each device, by its name."""
        self._transcripts: dict[str, Transcript] = {}

    async def run(self) -> Never:
        """Supervise all devices until cancelled."""
        async with trio.open_nursery() as nursery:
            for name, section in self._config.devices.items():
                nursery.start_soon(
                    partial(
                        supervise,
                        name,
                        section,
                        partial(self.use, name, section),
                        board=self.board,
                        allow_simulated=self._config.node.allow_simulated,
                        on_readings=partial(self._watch.note, name),
                        transcripts=self._transcripts,
                    )
                )
            await trio.sleep_forever()
        raise AssertionError("its tasks never end by themselves")

    def exchanges(self, name: str) -> list[Exchange] | None:
        """Return the last bytes to and from the device ``name``, None if there is none."""
        transcript = self._transcripts.get(name)
        return None if transcript is None else transcript.exchanges()

    async def use(self, name: str, section: DeviceSection, device: Device) -> None:
        """Pass a device to the parts of the link that use it.

        Raises:
            ConfigError: the device is of no use at this site.
        """
        use = partial(self._use_beside_controllers, name, section, device)
        await self.instruments.keep(name, device, section.silence_limit_s, use)

    async def _use_beside_controllers(self, name: str, section: DeviceSection, device: Device) -> None:
        """Use a device's random numbers, if they are wanted, and the rest of it."""
        if self._randomness is None or name != self._randomness.device:
            await self._use_part(section, device)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._randomness.use, device, section.silence_limit_s)
            await self._use_part(section, device)
            nursery.cancel_scope.cancel()

    async def _use_part(self, section: DeviceSection, device: Device) -> None:
        """Pass a device to the part of the link that uses it."""
        role = self._config.node.role
        if role == "alice" and isinstance(device, Transmitter):
            await self._port.use(device)
        elif role == "bob" and isinstance(device, TagSource):
            await self._receiver.use(device, section.silence_limit_s)
        elif isinstance(device, Sensor) or capabilities_of(device):
            await trio.sleep_forever()  # its supervisor reads it
        else:
            needed = "transmitter" if role == "alice" else "tag source"
            raise ConfigError(
                f"[devices] driver {section.driver} is of no use at {role}: expected a {needed}, sensor or "
                f"other capability, got a {type(device).__name__} (docs/drivers.md says what each has)"
            )
