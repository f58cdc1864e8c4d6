"""Microcontroller boards as budgets: `--target NAME` is a bound on `ram_bytes` and one on `flash_bytes`.

What a board has is as commonly published, not measured here: look into the data sheet of yours. The budgets are less:
the reserve is for the stack, which takes about 500 bytes in the network on a Cortex-M4, for a picture of up to 32 x 32
in colour, for the start-up code of C, and for a small program around the network. Whose pictures or program need more
gives budgets of its own (`--budget "ram_bytes<=40k"`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from oncequant.cost import COSTS, Budget

RAM_RESERVE, FLASH_RESERVE = 4 * 1024, 8 * 1024  # bytes


@dataclass(frozen=True)
class Target:
    """A board, or a size of boards."""

    name: str
    """As `--target` has it."""
    board: str
    """Board and chip."""
    core: str
    clock_mhz: int
    ram_kib: int
    """All that a program can use as one block."""
    flash_kib: int
    note: str = ""

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """What it has, less the reserve."""
        return (
            Budget(COSTS["ram_bytes"], 1024 * self.ram_kib - RAM_RESERVE, self.name),
            Budget(COSTS["flash_bytes"], 1024 * self.flash_kib - FLASH_RESERVE, self.name),
        )


SLOW = "no DSP instructions, no floating point: slow portable kernels"

TARGETS = (
    Target("cortex-m4", "any, of a common size", "Cortex-M4F", 80, 64, 128),
    Target("nano-33-ble", "Arduino Nano 33 BLE, nRF52840", "Cortex-M4F", 64, 256, 1024),
    Target("nrf52832", "nRF52 DK, nRF52832", "Cortex-M4F", 64, 64, 512),
    Target("stm32l476", "Nucleo-L476RG", "Cortex-M4F", 80, 96, 1024, "128 kB of RAM, of which 96 are one block"),
    Target("stm32f446", "Nucleo-F446RE", "Cortex-M4F", 180, 128, 512),
    Target("stm32g474", "Nucleo-G474RE", "Cortex-M4F", 170, 128, 512),
    Target("stm32f746", "STM32F746G-DISCO", "Cortex-M7", 216, 320, 1024),
    Target("stm32f103", "Blue Pill, STM32F103C8", "Cortex-M3", 72, 20, 64, SLOW),
    Target("pico", "Raspberry Pi Pico, RP2040", "Cortex-M0+", 133, 264, 2048, SLOW),
)

HELP = (
    "A board of `oncequant info --targets`: its RAM and flash, less a reserve, become budgets, unless --budget has "
    "these costs. `run` writes C, too."
)


def with_target(budgets: Sequence[Budget], name: str | None) -> tuple[Budget, ...]:
    """The budgets, and those of a target for costs that none of them is about. Raises ValueError for unknown names."""
    if name is None:
        return tuple(budgets)
    found = [target for target in TARGETS if target.name == name]
    if not found:
        raise ValueError(f"target {name!r}: use one of {', '.join(target.name for target in TARGETS)}")
    given = {budget.cost.name for budget in budgets}
    return (*budgets, *(budget for budget in found[0].budgets if budget.cost.name not in given))
