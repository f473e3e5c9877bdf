from runner.machine import memory


def test_a_containers_limit_counts_where_it_is_a_number(tmp_path):
    most, used = tmp_path / "memory.max", tmp_path / "memory.current"
    used.write_text("1024\n")
    cgroups = ((str(most), str(used)), (str(tmp_path / "none"), ""))
    for text, wanted in (("1048576\n", [(1 << 20, 1024)]), ("max\n", [])):
        most.write_text(text)
        assert list(memory.container_limits(cgroups)) == wanted


def test_what_is_free_is_no_more_than_there_is():
    free = memory.free_main_memory()
    assert free is None or free > 0


def test_the_peak_of_a_process_is_no_less_than_it_holds():
    held, peak = memory.status_bytes("VmRSS"), memory.status_bytes("VmHWM")
    assert (held is None and peak is None) or 0 < held <= peak
