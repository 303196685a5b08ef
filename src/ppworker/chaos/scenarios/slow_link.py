"""The way to PostgreSQL takes time, as it does between two data centres."""

import time

from ppworker.chaos import load, measure
from ppworker.chaos.proxy import Proxy, address_of, through
from ppworker.chaos.scenario import Measured, Run, Scenario, add

_MEASURED_S = 30.0
_DELAYS_MS = (0, 1, 20)
_MOST_PER_S = 300


def _once(run: Run) -> Measured:
    with run.cluster() as cluster, Proxy(address_of(cluster.database_url)) as proxy:
        seconds = run.seconds(_MEASURED_S, least=4)
        work = load.make(cluster, slow_share=0.0)
        work.add(round(_MOST_PER_S * (len(_DELAYS_MS) * (seconds + 2))))
        cluster.start_workers(
            PPWORKER_DATABASE_URL=through(cluster.database_url, proxy.port),
        )
        rates: dict[int, float] = {}
        for delay_ms in _DELAYS_MS:
            proxy.delay(delay_ms / 1000)
            time.sleep(2)
            with run.phase(f"{delay_ms} ms") as phase:
                time.sleep(seconds)
            rates[delay_ms] = measure.of_phase(cluster, phase).mean
        proxy.delay(0)
        cluster.drain(seconds=300)
        found = measure.totals(cluster)
        said = ", ".join(f"{rate:.0f} at {delay} ms" for delay, rate in rates.items())
        return Measured(
            figure=f"jobs a second with 8 slots, of about 27 ms each: {said} each way",
            broken=[*found.broken(), *cluster.check()],
            figures={
                **found.as_figures(),
                **{f"per_s_{delay}_ms": round(rate, 1) for delay, rate in rates.items()},
            },
            phases=measure.described(cluster, run.phases),
        )


add(
    Scenario(
        name="slow-link",
        faults=(),
        promise="A slow link to PostgreSQL costs throughput and nothing else; work is claimed and "
        "ended in batches, so that little of it is lost.",
        fault="a proxy delays everything between workers and PostgreSQL by 1 ms and by 20 ms in "
        "each direction",
        target="clean; the throughput is stated",
        once=_once,
        quick_scale=0.15,
    )
)
