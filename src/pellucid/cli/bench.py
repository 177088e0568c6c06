"""`pellucid bench`: offline throughput, single kernels, and load on a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.bench.settings import KernelSettings, LoadSettings, RandomModel, Workload
from pellucid.cli.options import configured
from pellucid.config import EngineConfig, ModelSettings, RunnerSettings
from pellucid.errors import ConfigError

if TYPE_CHECKING:
    from pellucid.bench.load import LoadReport
    from pellucid.bench.throughput import Throughput

CLIENT_IS_BUSY = 0.8  # share of a core from which the client may hold the server back

app = typer.Typer(no_args_is_help=True, help="Measure the engine alone, or any server.")

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report here.")
]


@app.command()
@configured()
def throughput(
    engine: EngineConfig, load: Workload, random: RandomModel, json: JsonFile = None
) -> None:
    """Measure the engine in this process: no HTTP, no text.

    Prompts are random token ids; greedy, EOS ignored; waves of --batch-size after a warm-up wave.
    Prefill rate: prompt tokens over the seconds of steps that compute prompt tokens. Decode rate:
    tokens over the seconds of all other steps. Seconds are wall-clock around a whole engine step.
    With --random-weights no model is needed. Nothing is guessed unless --speculative asks for it.
    """
    from pellucid.bench.throughput import measure, undrafted
    from pellucid.cli.console import notes, progress_bar
    from pellucid.cli.download import fetch_all
    from pellucid.engine.ahead import create_core
    from pellucid.runner.factory import create_random_runner, create_runner

    engine = undrafted(engine)
    if load.batch_size > engine.scheduler.max_num_seqs:
        raise ConfigError(
            f"--batch-size: must be at most --max-num-seqs, {engine.scheduler.max_num_seqs}"
        )
    if engine.runner.runner != "fake" and not random.random_weights:
        fetch_all(engine)
    with notes().status("loading the model"):
        if random.random_weights:
            runner = create_random_runner(engine, random.shape or "smollm2-135m")
        else:
            runner = create_runner(engine)
    try:
        core = create_core(runner, engine.cache, engine.scheduler)
        with progress_bar("prompts", load.num_prompts) as advance:
            result = measure(core, load, advance)
    finally:
        runner.close()
    _show_throughput(result)
    if json:
        from msgspec.structs import asdict

        about = {"workload": load, "random": random, "engine": asdict(core.info)}
        about["settings"] = engine
        _write(json, result, about)


@app.command()
@configured(
    only=(
        *("model", "cache_dir", "offline", "device", "threads"),
        *("rows", "context", "write_thresholds"),
    )
)
def kernels(
    model: ModelSettings,
    runner: RunnerSettings,
    load: KernelSettings,
    json: JsonFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="On a GPU: draw RMSNorm by tokens (needs matplotlib)."
        ),
    ] = None,
) -> None:
    """Measure every kernel on the shapes of a model, whose weights are not needed.

    Each against what this machine can do, which is measured first: bytes read from memory per
    second, and products. On a CPU the native kernels, on a GPU Triton's and torch's. Error: against
    the float32 reference, as a share of the norm; that of int4 and int8 on a CPU is the rounding of
    activations.
    """
    from pellucid.cli.console import notes
    from pellucid.cli.kernels import measure_kernels, on_gpu, show_kernels

    if on_gpu(runner):
        from pellucid.cli.gpu_kernels import bench_gpu

        results = bench_gpu(model, runner, load, plot)
    else:
        if plot or load.write_thresholds:
            raise ConfigError("--plot and --write-thresholds need a GPU", param="write_thresholds")
        with notes().status("measuring"):
            limits, measured = measure_kernels(model, runner.threads, load)
        show_kernels(limits, measured)
        results = {"limits": limits, "kernels": measured}
    if json:
        _write(json, results, {"settings": load})


@app.command()
@configured()
def serve(
    load: LoadSettings,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token of the server.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Measure any OpenAI-compatible server: TTFT, ITL, TPOT, end-to-end, throughput, goodput.

    Times count from the sending of a request; tokens are counted by the server's usage.
    """
    from pellucid.bench.serving import bench_server, plain_settings
    from pellucid.cli.console import progress_bar

    with progress_bar("requests", load.num_prompts) as advance:
        result = bench_server(load, api_key, lambda: advance(1))
    _show_load(result)
    if json:
        _write(json, result, {"settings": plain_settings(load)})
    if result.completed == 0:
        raise typer.Exit(1)


def _write(
    path: Path, result: LoadReport | Throughput | dict[str, Any], about: dict[str, Any]
) -> None:
    """The result's keys at the top level, and beside them what was measured where."""
    import msgspec

    from pellucid.bench.machine import describe_machine, describe_versions
    from pellucid.bench.summary import command_line, write_json

    origin = {
        "command": command_line(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    write_json(path, {**msgspec.to_builtins(result), **msgspec.to_builtins(about), **origin})


def _show_throughput(result: Throughput) -> None:
    from pellucid.cli.console import add_summary, rate, results, summary_table

    out = results()
    table = summary_table("")
    add_summary(table, "TTFT", result.ttft_ms)
    add_summary(table, "prefill step", result.prefill_step_ms)
    add_summary(table, "decode step", result.decode_step_ms)
    out.print(table)
    out.print(
        f"prefill {rate(result.prefill_tokens_per_s)} tokens/s"
        f" ({result.prompt_tokens} tokens, {result.prefill_steps} steps,"
        f" {result.mixed_steps} mixed)"
    )
    out.print(
        f"decode  {rate(result.decode_tokens_per_s)} tokens/s"
        f" ({result.output_tokens} tokens, {result.decode_steps} steps,"
        f" weights read at {rate(result.weight_gb_per_s)} GB/s)"
    )
    out.print(f"total   {rate(result.total_tokens_per_s)} tokens/s in {result.seconds:.2f} s")
    if result.preemptions:
        out.print(f"[yellow]{result.preemptions} preemptions: the KV pool is too small[/]")


def _show_load(result: LoadReport) -> None:
    from pellucid.cli.console import add_summary, rate, results, summary_table

    out = results()
    table = summary_table("")
    for name in ("ttft", "itl", "tpot", "e2e", "wait"):
        add_summary(table, name.upper(), getattr(result, f"{name}_ms"))
    out.print(table)
    out.print(
        f"{result.completed} completed, {result.failed} failed in {result.seconds:.2f} s:"
        f" {rate(result.requests_per_s)} requests/s,"
        f" {rate(result.output_tokens_per_s)} output tokens/s,"
        f" {rate(result.total_tokens_per_s)} tokens/s in all"
    )
    if result.goodput is not None:
        good, per_second = result.goodput["requests"], result.goodput["requests_per_s"]
        out.print(f"goodput {rate(per_second)} requests/s ({good} kept every limit)")
    for reason, count in result.failures.items():
        out.print(f"[red]{count} failed[/]: {reason}", markup=True)
    if result.without_usage:
        out.print(f"{result.without_usage} answers came without usage: their chunks were counted")
    if result.client_cpu_share > CLIENT_IS_BUSY:
        share = f"{result.client_cpu_share:.0%}"
        out.print(f"[yellow]this client used {share} of a core and may be the bottleneck[/]")
