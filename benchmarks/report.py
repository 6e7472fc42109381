"""Tables: on the terminal, and in Markdown between two markers of a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.contestants import CONTESTANTS, HUSHGRAD, LEAN, ORDINARY
from benchmarks.results import Results, WorkloadResult
from benchmarks.timing import Interval

BEGIN = "<!-- benchmark:begin -->"
END = "<!-- benchmark:end -->"

FUNC = "torch-func"

Rows = list[list[str]]


def print_results(results: Results, console: Console) -> None:
    """Print every table of the results."""
    console.print(f"{results.machine}. {_procedure(results)}")
    for title, rows in _tables(results):
        print_table(title, rows, console)


def print_table(title: str, rows: Rows, console: Console) -> None:
    """Print rows, of which the first are the headings."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for index, heading in enumerate(rows[0]):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    console.print()
    console.print(table)


def short_markdown(results: Results) -> str:
    """Return one table with a row for each workload, as a README shows it. Of Opacus it shows the fastest mode."""
    heads = ["ordinary", "hushgrad", "best Opacus mode", "`vmap(grad)`", "hushgrad's peak memory", "best Opacus peak"]
    heads += ["hushgrad lean: time, peak"]
    rows = [["step", *heads]]
    for work in results.workloads.values():
        opacus = [name for name in work.contestants if name.startswith("opacus")]
        fastest = min(opacus, key=lambda name: work.contestants[name].to_ordinary.median, default=None)
        peaks = {name: ratio for name in opacus if (ratio := _peak_ratio(work, name)) is not None}
        smallest = min(peaks, key=lambda name: peaks[name], default=None)
        hushgrad_peak = _peak_ratio(work, HUSHGRAD)
        rows.append(
            [
                f"{work.title}, B={work.batch_size}",
                f"{work.contestants[ORDINARY].step_ms.median:.2f} ms",
                _times(work.contestants[HUSHGRAD].to_ordinary),
                "" if fastest is None else f"{_times(work.contestants[fastest].to_ordinary)} {_mode(fastest)}",
                _times(work.contestants[FUNC].to_ordinary) if FUNC in work.contestants else "",
                "" if hushgrad_peak is None else f"{hushgrad_peak:.2f}×",
                "" if smallest is None else f"{peaks[smallest]:.2f}× {_mode(smallest)}",
                _lean(work),
            ]
        )
    return "\n\n".join([_markdown(rows), f"{results.machine}. {_procedure(results)} `{results.command}`"])


def _lean(work: WorkloadResult) -> str:
    """Return time and memory of the session that keeps no gradients beyond the memory of what they replace."""
    if LEAN not in work.contestants:
        return ""
    peak = _peak_ratio(work, LEAN)
    return f"{work.contestants[LEAN].to_ordinary.median:.2f}×" + ("" if peak is None else f", {peak:.2f}×")


def _mode(name: str) -> str:
    return name.removeprefix("opacus-")


def full_markdown(results: Results) -> str:
    """Return every table of the results, as the page on performance shows them."""
    parts = [f"{results.machine}. {_procedure(results)} `{results.command}`"]
    for title, rows in _tables(results):
        parts += [f"**{title}**", _markdown(rows)]
    return "\n\n".join(parts)


def replace_between_markers(page: str, content: str) -> str:
    """Return the page with `content` between its markers. Raises ValueError unless it has one pair of them."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"expected one {BEGIN} and after it one {END} in the page")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def write_between_markers(path: Path, content: str) -> None:
    """Replace what is between the markers of a file."""
    path.write_text(replace_between_markers(path.read_text(encoding="utf-8"), content), encoding="utf-8")


def _procedure(results: Results) -> str:
    allocator = {
        "steady": "the allocator keeps freed memory, for all contestants alike",
        "default": "the allocator has its default settings, but for what a session changes in the process",
    }[results.allocator]
    return (
        f"Medians of {results.pairs} paired ratios to the ordinary step, interleaved, with 95% intervals; "
        f"a step is forward, backward, clipping, noise (σ = 1) and SGD; {allocator}."
    )


def _tables(results: Results) -> Iterator[tuple[str, Rows]]:
    for work in results.workloads.values():
        yield (
            f"{work.title}, B={work.batch_size}, {work.parameters:,} trained parameters{_target(work)}",
            _step_rows(work),
        )
        if work.profile is not None:
            title = f"{work.title}: milliseconds of a step"
            yield f"{title}, by phase", _profile_rows("phase", work.profile.phases_ms, with_sum=True)
            yield f"{title}, by operator", _profile_rows("operator", work.profile.operators_ms, with_sum=False)
            yield f"{work.title}: a step uses", _profile_rows("resource", work.profile.resources, with_sum=False)
    if results.noise is not None:
        noise = results.noise
        rows = [
            ["drawing noise", "ns/value"],
            ["hushgrad (AES-CTR, strips of equal area)", _plain(noise.hushgrad_ns)],
            ["torch `normal_`", _plain(noise.torch_ns)],
            ["ratio, paired", _plain(noise.ratio)],
        ]
        yield f"Noise on {noise.values:,} values, float32", rows


def _step_rows(work: WorkloadResult) -> Rows:
    rows = [["", "step, ms", "× ordinary", "beyond it, ms", "× hushgrad", "peak, MiB", "× ordinary", "first step"]]
    unmeasured = ["-"] * (len(rows[0]) - 1)
    for name, found in work.contestants.items():
        rows.append(
            [
                _heading(name),
                f"{found.step_ms.median:.2f}",
                "1" if name == ORDINARY else _plain(found.to_ordinary),
                "0" if name == ORDINARY else _plain(found.beyond_ordinary_ms),
                "1" if name == HUSHGRAD else _plain(found.to_hushgrad),
                "-" if found.peak is None else f"{found.peak.later_steps / 2**20:.1f}",
                "-" if (ratio := _peak_ratio(work, name)) is None else f"{ratio:.2f}",
                "-" if found.peak is None else f"{found.peak.first_step / 2**20:.1f}",
            ]
        )
    rows += [[f"{_heading(name)}: {why}", *unmeasured] for name, why in work.absent.items()]
    return rows


def _target(work: WorkloadResult) -> str:
    if work.target_time is None or work.target_memory is None:
        return ""
    return f"; target: time ≤ {work.target_time:.2f}×, memory ≤ {work.target_memory:.2f}×"


def _peak_ratio(work: WorkloadResult, name: str) -> float | None:
    peak, ordinary = work.contestants[name].peak, work.contestants[ORDINARY].peak
    return None if peak is None or ordinary is None else peak.later_steps / ordinary.later_steps


def _profile_rows(label: str, times: dict[str, dict[str, float]], *, with_sum: bool) -> Rows:
    rows = [[label, "ordinary", "hushgrad", "difference"]]
    for name, row in times.items():
        rows.append([name, *_differences(row[ORDINARY], row[HUSHGRAD])])
    if with_sum:
        sums = [sum(row[name] for row in times.values()) for name in (ORDINARY, HUSHGRAD)]
        rows.append(["together", *_differences(*sums)])
    return rows


def _differences(ordinary: float, private: float) -> list[str]:
    return [f"{ordinary:.3f}", f"{private:.3f}", f"{private - ordinary:+.3f}"]


def _heading(name: str) -> str:
    return CONTESTANTS[name].title


def _plain(interval: Interval) -> str:
    return f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _times(interval: Interval) -> str:
    return f"{interval.median:.2f}× [{interval.low:.2f}, {interval.high:.2f}]"


def _markdown(rows: Rows) -> str:
    rule = ["---", *["---:" for _ in rows[0][1:]]]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])
