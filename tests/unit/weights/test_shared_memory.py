"""Memory between processes of one machine, and what must not be taken for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlsys.weights.shared_memory import SharedMemory

READER = """
import sys
from rlsys.weights.shared_memory import SharedMemory
memory = SharedMemory.attach(sys.argv[1])
print(None if memory is None else memory.tensor.tolist())
"""


def read_elsewhere(address: str) -> str:
    """What another process finds there."""
    command = [sys.executable, "-c", READER, address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def created(num_bytes: int) -> SharedMemory:
    memory = SharedMemory.create(num_bytes)
    assert memory is not None
    return memory


def test_another_process_reads_what_is_written_later() -> None:
    memory = created(3)
    assert memory.tensor.tolist() == [0, 0, 0]
    memory.tensor[1] = 7
    assert read_elsewhere(memory.address) == "[0, 7, 0]"


@pytest.mark.parametrize("changed", ["process", "descriptor", "nonce"])
def test_what_is_not_the_memory_that_was_meant_is_not_taken(changed: str) -> None:
    """The numbers of one machine name nothing, or something else, on another."""
    memory, other = created(3), created(3)
    process, descriptor, num_bytes, nonce = memory.address.split()
    wrong = {
        "process": f"{2**22 + 1} {descriptor} {num_bytes} {nonce}",  # above the highest number of a process
        "descriptor": f"{process} {other.address.split()[1]} {num_bytes} {nonce}",
        "nonce": f"{process} {descriptor} {num_bytes} {'0' * len(nonce)}",
    }
    assert read_elsewhere(wrong[changed]) == "None"


def test_a_file_that_is_too_short_is_not_mapped() -> None:
    process, descriptor, _, nonce = created(3).address.split()
    assert read_elsewhere(f"{process} {descriptor} 1000000 {nonce}") == "None"
