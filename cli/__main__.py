"""python -m mtkd_cache.cli"""

from .main import main

main()
