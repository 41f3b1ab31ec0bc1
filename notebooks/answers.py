"""What the lake knows, in twelve chapters: `marimo edit notebooks/answers.py`, or run it as a script.

TOKENSWEEP_LAKE names the lake. Every metric is defined beside its plot. `answers.ipynb` is
the same for Jupyter, made by `marimo export ipynb notebooks/answers.py --sort topological -o notebooks/answers.ipynb`.
"""

import marimo

app = marimo.App(width="medium", app_title="tokensweep: answers")


@app.cell
def _():
    import marimo as mo

    from tasks.analysis.notebook_charts import chart_page
    from tasks.analysis.questions import best_servers, compare_servers, coverage_rows
    from tasks.lake import open_lake, query
    from tasks.lake_access import lake_address
    from tasks.settings import Settings

    lake = open_lake(lake_address(Settings()))

    def ask(sql, *parameters):
        return query(lake, sql, list(parameters))

    def plot(rows, options, caption, height=380):
        rows = rows if isinstance(rows, list) else rows.to_dicts()
        return mo.iframe(chart_page(rows, options, caption), height=f"{height + 70}px") if rows else mo.md("*Nothing yet.*")

    return ask, best_servers, compare_servers, coverage_rows, lake, mo, plot, query


@app.cell
def _(ask, mo):
    age = ask(
        """
        SELECT count(DISTINCT vendor || '/' || server) AS servers, count(*) AS cells,
            count(*) FILTER (outcome = 'measured') AS measured, min(run_started_at) AS first_run,
            max(run_started_at) AS newest_run, string_agg(DISTINCT source, ', ') AS sources
        FROM v_cells
        """
    )
    mo.vstack(
        [
            mo.md(
                """
    # 1. Words, and how old the data are

    **pp _n_**: prompt processing, tokens per second while a prompt of *n* tokens is read. **tg _n_**: text generation,
    tokens per second while *n* tokens are written. Both for **one sequence** in llama-bench; a server that batches many
    users gives more in total. The figure to quote is the **median** of the repeats; **±** is half the 95 % interval of
    the mean by Student's t. **USD per 1M tokens** is price per hour over tokens per hour, the server fully used.
    """
            ),
            mo.ui.table(age, selection=None),
            mo.ui.table(ask("FROM v_problems LIMIT 50"), selection=None, label="Files that were left out"),
        ]
    )
    return (age,)


@app.cell
def _(coverage_rows, lake, mo):
    covered = coverage_rows(lake)
    mo.vstack(
        [
            mo.md(
                """
    # 2. Coverage, with the reason of every gap

    Measured cells of planned ones in the newest sweep, by server and model. `main_reason` is the most frequent reason
    of what is missing: *gated* was spared on purpose, *infeasible* does not fit, *failed* and *not reached* went wrong.
    """
            ),
            mo.ui.table(
                [
                    {k: r[k] for k in ("vendor", "server", "model", "n_cells", "n_measured", "main_reason", "main_detail")}
                    for r in covered
                ],
                selection=None,
            ),
        ]
    )
    return (covered,)


@app.cell
def _(ask, mo):
    servers = ask("SELECT DISTINCT vendor || '/' || server AS name FROM v_latest ORDER BY 1")["name"].to_list()
    models = ask("SELECT model FROM v_latest GROUP BY 1 ORDER BY max(model_bytes)")["model"].to_list()
    pick_server = mo.ui.dropdown(servers, value=servers[0] if servers else None, label="Server")
    pick_model = mo.ui.dropdown(models, value=models[0] if models else None, label="Model")
    pick_task = mo.ui.radio(["tg", "pp"], value="tg", label="Phase", inline=True)
    usual = ask("SELECT n_tokens FROM v_latest WHERE task = 'tg' GROUP BY 1 ORDER BY count(*) DESC, n_tokens = 128 DESC")
    pick_n = mo.ui.number(1, 65536, value=usual["n_tokens"][0] if usual.height else 128, label="Tokens")
    pick_min = mo.ui.number(0, 1e6, value=1, label="At least tok/s")
    mo.hstack([pick_model, pick_task, pick_n, pick_min, pick_server], justify="start", wrap=True)
    return models, pick_min, pick_model, pick_n, pick_server, pick_task, servers, usual


@app.cell
def _(ask, mo, pick_server, plot):
    curves = ask(
        """
        SELECT model, task, n_tokens, tok_per_s_median AS v, tok_per_s_min AS lo, tok_per_s_max AS hi FROM v_latest
        WHERE vendor || '/' || server = ? ORDER BY model, task, n_tokens
        """,
        pick_server.value or "",
    )
    _options = """{height: 380, fx: {label: null}, x: {type: "log", base: 2, label: "tokens"},
        y: {type: "log", grid: true, label: "tokens per second"}, color: {legend: true}, marks: [
        Plot.areaY(rows, {fx: "task", x: "n_tokens", y1: "lo", y2: "hi", fill: "model", fillOpacity: .2}),
        Plot.line(rows, {fx: "task", x: "n_tokens", y: "v", stroke: "model", marker: true})]}"""
    mo.vstack(
        [
            mo.md(f"# 3. One server: {pick_server.value or 'none yet'}"),
            plot(curves, _options, "Median tokens/s by length; the band spans slowest to fastest repeat."),
            mo.ui.table(ask("FROM v_trust WHERE vendor || '/' || server = ?", pick_server.value or ""), selection=None),
        ]
    )
    return (curves,)


@app.cell
def _(compare_servers, lake, mo, servers):
    if len(servers) > 1:
        found = compare_servers(lake, servers[:5])
        _rows = [
            {"model": c["model"], "cell": f"{c['task']}{c['n_tokens']}"}
            | {name: f"{r['tok_per_s']:.4g} ({r['ratio']:.2f}x{' noise' if r['within_noise'] else ''})" for name, r in c["servers"].items()}
            for c in found.cells
        ]
    else:
        found, _rows = None, []
    mo.vstack(
        [
            mo.md(
                """
    # 4. Up to five servers side by side

    The ratio is to the first one; *noise* where the two 95 % intervals meet.
    """
            ),
            mo.ui.table(_rows, selection=None) if _rows else mo.md("*Two servers are needed.*"),
        ]
    )
    return (found,)


@app.cell
def _(best_servers, lake, mo, models, pick_min, pick_model, pick_n, pick_task):
    from tasks.domain.errors import ConfigError

    try:
        best = best_servers(lake, pick_model.value or "", pick_task.value, int(pick_n.value), pick_min.value) if models else []
        _said = ""
    except ConfigError as exc:
        best, _said = [], str(exc)
    mo.vstack(
        [
            mo.md(
                f"""
    # 5. The cheapest server for a speed

    {pick_model.value} {pick_task.value}{pick_n.value} at {pick_min.value} tok/s or more, cheapest first. `sure`: even
    the lower end of the interval reaches it. {_said}
    """
            ),
            mo.ui.table(best, selection=None) if best else mo.md("*None.*"),
        ]
    )
    return (best,)


@app.cell
def _(ask, mo, pick_model, plot):
    costs = ask("SELECT *, vendor || '/' || server AS name FROM token_cost(?, 512, 128)", pick_model.value or "")
    _options = """{height: 420, marginLeft: 190, x: {type: "log", label: "USD per 1M tokens", grid: true}, y: {label: null},
        color: {legend: true}, symbol: {legend: true}, marks: [Plot.dot(rows.slice(0, 75), {x: "usd_per_mtok", y: "name",
        stroke: "kind", symbol: "kind", sort: {y: "x"}})]}"""
    mo.vstack(
        [
            mo.md(
                """
    # 6. What a million tokens cost

    For requests of 512 prompt and 128 output tokens, one after another. *prompt* at the speed of pp, *output* at that
    of tg, *blended* over the time of the whole request. Throughput kind: single sequence.
    """
            ),
            plot(costs, _options, "USD per million tokens by kind, the 25 cheapest servers.", 420),
        ]
    )
    return (costs,)


@app.cell
def _(ask, mo, pick_model, pick_n, pick_task, plot):
    front = ask(
        "SELECT *, CAST(price_usd_per_hour AS DOUBLE) AS usd FROM pareto(?, ?, ?)",
        pick_model.value or "",
        pick_task.value,
        int(pick_n.value),
    )
    _options = """{height: 400, x: {type: "log", label: "USD per hour", grid: true}, y: {type: "log", grid: true,
        label: "tokens per second"}, symbol: {legend: true}, marks: [
        Plot.line(rows.filter(r => r.on_frontier), {x: "usd", y: "tok_per_s", curve: "step-after", strokeOpacity: .5}),
        Plot.dot(rows, {x: "usd", y: "tok_per_s", stroke: "vendor", symbol: "vendor", tip: true, r: r => r.on_frontier ? 6 : 3,
        title: r => `${r.vendor}/${r.server}${r.beaten_by ? "\\nbeaten by " + r.beaten_by : ""}`})]}"""
    mo.vstack([mo.md("# 7. Price against speed"), plot(front, _options, "The line is the frontier: no other server beats it in both.", 400)])
    return (front,)


@app.cell
def _(ask, mo, plot):
    cliff = ask(
        """
        SELECT c.model, max(c.model_bytes) / 1e9 AS gb, h.memory_total_bytes / 1e9 AS memory_gb,
            bool_or(c.outcome = 'measured') AS measured, any_value(c.reason) FILTER (c.outcome = 'infeasible') AS reason
        FROM cells AS c JOIN hardware AS h USING (sweep_id, server_run_id)
        GROUP BY c.vendor, c.server, c.model, h.memory_total_bytes
        """
    )
    _options = """{height: 400, x: {type: "log", label: "memory of the server, GB", grid: true}, y: {type: "log", grid: true,
        label: "file of the model, GB"}, color: {legend: true, tickFormat: d => d ? "measured" : "not measured"}, marks: [
        Plot.link([0], {x1: d3.min(rows, r => r.gb), y1: d3.min(rows, r => r.gb), x2: d3.max(rows, r => r.gb), y2: d3.max(rows, r => r.gb), strokeDasharray: "4 4"}),
        Plot.dot(rows, {x: "memory_gb", y: "gb", stroke: "measured", symbol: "measured", title: "reason", tip: true})]}"""
    mo.vstack(
        [
            mo.md("# 8. What fits: the cliff"),
            plot(cliff, _options, "Model file against memory that a process may use. Above the dashed line nothing fits without a GPU.", 400),
        ]
    )
    return (cliff,)


@app.cell
def _(ask, mo):
    gates = ask(
        """
        SELECT sweep_id, reason, count(*) AS n_cells, sum(spared_s) / 3600 AS spared_h, sum(spared_usd) AS spared_usd,
            count(*) FILTER (near_miss) AS near_misses FROM v_gates GROUP BY ALL ORDER BY spared_usd DESC NULLS LAST
        """
    )
    mo.vstack(
        [
            mo.md(
                """
    # 9. The gates, audited

    What 5 repeats and a warm-up of each gated cell would have cost at least, at the optimistic prediction. A *near
    miss* reached 80 % of its gate by that prediction. Below: the same gates half as strict.
    """
            ),
            mo.ui.table(gates, selection=None),
            mo.ui.table(ask("FROM what_if_gate(0.5) WHERE n_would_be_tried > 0"), selection=None),
        ]
    )
    return (gates,)


@app.cell
def _(ask, mo):
    spend = ask("FROM v_spend")
    mo.vstack(
        [
            mo.md("# 10. What it cost, and the proof that nothing is left"),
            mo.ui.table(spend, selection=None),
            mo.ui.table(ask("FROM v_teardown"), selection=None, label="Created, and proven gone"),
            mo.ui.table(ask("FROM v_leaks"), selection=None, label="Not proven at landing"),
        ]
    )
    return (spend,)


@app.cell
def _(ask, mo, plot):
    moved = ask("SELECT vendor, changed, ratio, measured_at FROM v_drift")
    _options = """{height: 300, x: {label: "this measurement over the one before", type: "log"}, y: {grid: true, label: "cells"},
        color: {legend: true}, marks: [Plot.rectY(rows, Plot.binX({y: "count"}, {x: "ratio", fill: r => r.changed || "nothing known",
        thresholds: 40})), Plot.ruleX([1])]}"""
    mo.vstack(
        [
            mo.md("# 11. Drift between measurements"),
            plot(moved, _options, "Ratio of each measurement to the one before, by what else changed (engine, build, backend, method).", 300),
        ]
    )
    return (moved,)


@app.cell
def _(lake, mo, query):
    sql = mo.ui.code_editor("SELECT vendor, count(*) AS n FROM v_latest GROUP BY 1 ORDER BY 2 DESC", language="sql")
    mo.vstack([mo.md("# 12. Ask yourself\n\nViews and macros: docs/lake.md."), sql])
    return (sql,)


@app.cell
def _(lake, mo, query, sql):
    answer = query(lake, sql.value)
    mo.ui.table(answer, selection=None)
    return (answer,)


if __name__ == "__main__":
    app.run()
