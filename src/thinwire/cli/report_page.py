"""The report as one HTML file: no network, no script, and no colour needed to read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from thinwire.cli.output import size
from thinwire.cli.report_figures import COLOURS, GRID, INK, panels, style, svg
from thinwire.cli.report_series import Series, Tasks, metrics_of, shown, spoken
from thinwire.version import __version__

DARK = ("#e8e8e8", "#6cb6ee", "#ff9d5c", "#3fd0a0", "#efa6cf", "#e0c04a", "#9fd0f5", "#c79be6")
NOTHING = "-"
MARKS = "●■▲◆▼✚✖⬟"

_CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: %(ink)s; --grid: %(grid)s;
  --soft: #f3f3f3; %(light)s }
@media (prefers-color-scheme: dark) { :root { --paper: #161616; --ink: #ececec; --grid: #474747;
  --soft: #232323; %(dark)s } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 12px; max-width: 1280px; background: var(--paper);
  color: var(--ink); font: 16px/1.45 system-ui, sans-serif }
h1 { font-size: 1.35rem; margin: .2em 0 } h2 { font-size: 1.15rem; margin: 1.4em 0 .4em }
p { margin: .4em 0; max-width: 46em }
.figures { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%%, 320px), 1fr)) }
figure { margin: 0; padding: 6px; border: 1px solid var(--grid); border-radius: 6px; max-width: 480px }
figure svg { display: block; width: 100%%; height: auto }
svg text { font-family: system-ui, sans-serif !important }
.legend { list-style: none; padding: 0; margin: .4em 0 .8em; display: grid; gap: 2px 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%%, 290px), 1fr)) }
.legend li { display: grid; grid-template-columns: 52px 1fr }
.legend svg { width: 46px; height: 14px; margin-top: 5px }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { text-align: right; padding: 4px 9px; border-bottom: 1px solid var(--grid); white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9em }
.notes { background: var(--soft); border-left: 4px solid var(--ink); padding: 4px 12px }
small { opacity: .8 }
@media print { figure { break-inside: avoid } }
"""  # noqa: E501


def page(tasks: Tasks, notes: Sequence[str]) -> str:
    """Returns the whole page.

    Args:
        tasks: what was read.
        notes: a sentence each about what was not.
    """
    title = "; ".join(tasks)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}: thinwire report</title>",
        f"<style>{_css()}</style></head><body>",
        f"<h1>{escape(title) if len(tasks) == 1 else 'Runs of several tasks'}</h1>",
    ]
    if notes:
        said = "".join(f"<p>{escape(note)}</p>" for note in notes)
        parts.append(f'<div class="notes" role="note">{said}</div>')
    number = 0
    for task, series in tasks.items():
        parts.append("<section>" if len(tasks) == 1 else f"<section><h2>{escape(task)}</h2>")
        parts += ['<ul class="legend">', *(_legend(s) for s in series), "</ul>"]
        parts.append('<div class="figures">')
        for panel in panels(series):
            number += 1
            parts.append(f"<figure>{svg(panel, number)}</figure>")
        parts += ["</div>", *_table(series), *_about(series), "</section>"]
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _css() -> str:
    def variables(colours: Sequence[str]) -> str:
        return " ".join(f"--c{n}: {colour};" for n, colour in enumerate(colours))

    values = {"ink": INK, "grid": GRID, "light": variables(COLOURS), "dark": variables(DARK)}
    return _CSS % values


def _legend(s: Series) -> str:
    _, _, line = style(s.number)
    dashes = "" if line == "-" else " ".join(f"{1.6 * n:g}" for n in line[1])
    n = s.number % len(COLOURS)
    swatch = (
        '<svg viewBox="0 0 46 14" aria-hidden="true"><path d="M1 7H45" style="stroke-width: 2; '
        f'stroke: var(--c{n}); stroke-dasharray: {dashes or "none"}"/><text x="23" y="11.5" '
        f'style="fill: var(--c{n}); font-size: 13px; text-anchor: middle">{MARKS[n]}</text></svg>'
    )
    seeds = f" <small>({len(s.runs)} seeds, band: all of them)</small>" if len(s.runs) > 1 else ""
    return f"<li>{swatch}<span><b>{s.letter}</b> {escape(s.label)}{seeds}</span></li>"


def _table(series: Sequence[Series]) -> Iterator[str]:
    metrics = metrics_of(series)
    heads = ["method", *map(spoken, metrics), "steps", "rounds", "said", "sent", "ratio", "seconds"]
    rows = []
    for s in series:
        cells = [f"<b>{s.letter}</b> {escape(s.label)}"]
        cells += [_spread(metric, s.last(metric)) for metric in metrics]
        cells += [_mean(s.last(key), "{:.0f}".format) for key in ("step", "round")]
        cells += [_mean(s.last(key), size) for key in ("uplink", "sent")]
        cells.append(NOTHING if s.ratio is None else f"{s.ratio:.4g}x")
        cells.append(_mean(s.last("seconds"), "{:.1f}".format))
        rows.append(cells)
    known = [n for n in range(len(heads)) if any(cells[n] != NOTHING for cells in rows)]
    yield '<h2>Methods</h2><div class="wide" tabindex="0"><table><thead><tr>'
    yield "".join(f'<th scope="col">{escape(heads[n])}</th>' for n in known)
    yield "</tr></thead><tbody>"
    for cells in rows:
        yield f"<tr>{''.join(f'<td>{cells[n]}</td>' for n in known)}</tr>"
    yield "</tbody></table></div>"
    yield (
        "<p><small>Last evaluation, mean over seeds +- half their range. said: framed bytes of all "
        "workers' own messages; sent: all bytes that left any rank; ratio: a float32 gradient of "
        "every step over said.</small></p>"
    )


def _spread(metric: str, values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    middle, half = sum(values) / len(values), (max(values) - min(values)) / 2
    return shown(metric, middle) + (f" +- {shown(metric, half)}" if len(values) > 1 else "")


def _mean(values: Sequence[float], say: object) -> str:
    assert callable(say)
    return str(say(sum(values) / len(values))) if values else NOTHING


def _about(series: Sequence[Series]) -> Iterator[str]:
    runs = [run for s in series for run in s.runs]
    ends = [f"{run.file.name} is {run.status}" for run in runs if run.status != "done"]
    machines = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in (run.head.get("machine") or {}).items()) for run in runs
    )
    versions = dict.fromkeys(str(run.head.get("thinwire")) for run in runs)
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    if ends:
        yield f"<p>Not done: {escape('; '.join(ends))}.</p>"
    yield (
        f"<p><small>{len(runs)} runs, seeds {escape(', '.join(map(str, seeds)) or 'none')}; "
        f"thinwire {escape(', '.join(versions))}, page by {__version__}; "
        f"{escape('; '.join(m for m in machines if m))}.</small></p>"
    )
