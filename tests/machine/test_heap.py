import json
import subprocess
import sys
import textwrap

import pytest

from runner.machine import heap

needs_glibc = pytest.mark.skipif(heap.glibc() is None, reason="glibc's heap")
MIB = 1 << 20


def in_a_process(script):
    """What a script prints as JSON; what is done to a heap stays done for the whole process."""
    begin = (
        f"import json, resource\nimport torch\nfrom runner.machine.heap import *\nheap, MIB = process_heap(), {MIB}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@needs_glibc
def test_memory_is_kept_for_the_next_layer():
    faults = in_a_process("""
        def faults_of_layers():
            begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                torch.zeros(40 * MIB, dtype=torch.uint8)  # more than glibc would take from its heap
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

        before = faults_of_layers()
        heap.take_over(None)
        heap.begin(None, 0)
        faults_of_layers()
        print(json.dumps([before, faults_of_layers()]))
    """)
    assert faults[0] > 20 and faults[1] < faults[0] / 20


@needs_glibc
def test_a_ceiling_is_kept():
    found = in_a_process("""
        def ones(size):
            return torch.ones(size * MIB, dtype=torch.uint8)

        heap.take_over(None)
        ceiling = resident_bytes() + 120 * MIB
        heap.begin(ceiling, 30 * MIB)
        layers, lasting = [], []
        for _ in range(10):  # what lasts lies between the layers, so that ten gaps of 9 MiB are left
            layers.append(ones(9))
            lasting.append(ones(1))
        del layers
        highest = resident_bytes()
        for size in range(20, 30):  # no gap holds it
            heap.check(size * MIB)
            layer = ones(size)
            highest = max(highest, resident_bytes())
            del layer
        print(json.dumps([highest <= ceiling, heap.sweeps, ceiling, heap.live_bytes()]))
    """)
    kept, sweeps, ceiling, live = found
    assert kept and sweeps > 0
    assert ceiling - 120 * MIB < live <= ceiling


@needs_glibc
def test_what_is_in_use_is_not_swept_for_again_and_again():
    sweeps = in_a_process("""
        heap.take_over(None)
        heap.begin(resident_bytes() + 50 * MIB, 10 * MIB)
        lasting = torch.ones(100 * MIB, dtype=torch.uint8)
        for _ in range(100):
            torch.ones(MIB, dtype=torch.uint8)
            heap.check()
        print(heap.sweeps)
    """)
    assert 1 <= sweeps <= 3


def test_with_another_c_library_nothing_is_done():
    other = heap.Heap(None)
    other.take_over(1)
    other.begin(1, 0)
    other.check()
    other.sweep()
    assert (other.live_bytes(), other.sweeps) == (None, 0)
