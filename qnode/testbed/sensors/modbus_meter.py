"""The meter over Modbus TCP: one reading within one deadline, or the reason why there is none."""

import asyncio
from typing import Final, Self

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from qnode.testbed.sensors.power_meter import BLOCKS, QUANTITIES, from_registers
from qnode.testbed.sensors.slots import PollFailed

# The library has deadlines of its own, for each request; ours is for the whole reading and always shorter.
_LIBRARY_TIMEOUT_S: Final = 3600.0


class ModbusMeter:
    """A client of the meter; connects with the first reading, and anew after each one that failed."""

    def __init__(self, host: str, port: int, timeout_s: float, device_id: int = 1) -> None:
        self._host, self._port, self._timeout_s, self._device_id = host, port, timeout_s, device_id
        self._client: AsyncModbusTcpClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    async def read(self) -> tuple[float, ...]:
        """Return one reading, in the order of `QUANTITIES`.

        Raises:
            PollFailed: there is none within the timeout; the connection is closed.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                values = await self._read()
        except TimeoutError:
            closed = self._client is not None and not self._client.connected
            self._close()
            if closed:
                raise PollFailed("disconnected", "the meter closed the connection") from None
            raise PollFailed("timeout", f"no answer within {self._timeout_s:g} s") from None
        except BaseException:
            self._close()
            raise
        return values

    async def _read(self) -> tuple[float, ...]:
        client = self._client
        if client is None:
            client = self._client = AsyncModbusTcpClient(
                self._host, port=self._port, timeout=_LIBRARY_TIMEOUT_S, retries=0, reconnect_delay=0
            )
            if not await client.connect():
                raise PollFailed("disconnected", "the meter accepts no connection")
        values: tuple[float, ...] = ()
        for block in BLOCKS:
            if not client.connected:
                raise PollFailed("disconnected", "the meter closed the connection")
            try:
                answer = await client.read_holding_registers(
                    block.first, count=block.length, device_id=self._device_id
                )
            except ModbusException as error:
                raise PollFailed("wrong_answer", str(error)) from None
            if answer.isError():
                raise PollFailed("exception", str(answer))
            if len(answer.registers) != block.length:
                raise PollFailed(
                    "wrong_answer", f"{len(answer.registers)} registers instead of {block.length}"
                )
            values += from_registers(answer.registers)
        assert len(values) == len(QUANTITIES)
        return values
