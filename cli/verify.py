"""mtkd-cache verify"""

from pathlib import Path

import click

from mtkd_cache.cli import common
from mtkd_cache.cli.common import reports, say


@click.command("verify")
@common.cache
@click.option("--store", help="Sample store: are its samples the cache's?")
@click.option("--teachers", type=click.Path(path_type=Path), help="Teachers' folder: are they the ones that spoke?")
@common.splits
@click.option("--live", type=click.IntRange(0), default=0, help="Run the teachers again on that many random samples.")
@click.option("--repair", is_flag=True, help="Make again what is broken, and nothing else.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the samples of --live.")
@common.device
@reports
def command(cache, store, teachers, splits, live, repair, seed, device) -> dict:
    """Check every byte of a cache, and with --store and --teachers whether it is theirs. Status 1 where it is not whole."""
    from mtkd_cache.cache.verify import verify
    from mtkd_cache.data.sample_store import SampleStore

    opened = SampleStore.open(store) if store else None
    result = verify(cache, store=opened, teachers=teachers, splits=splits, live=live, repair=repair, seed=seed, device=device)
    for problem in result["problems"]:
        say(f"{problem['kind']}: {problem['where']}. {problem['what_to_do']}")
    say(f"{cache}: {'whole' if result['ok'] else 'not whole'}, {result['files']} files, {result['seconds']:.1f} s")
    return result
