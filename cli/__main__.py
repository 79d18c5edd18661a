"""python -m mtkd_cache.cli"""

from mtkd_cache.cli.main import main

main()
