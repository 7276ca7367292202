"`python -m sr_distill`, for where the command is not on the path, and for torchrun."
import sys
from sr_distill.cli import main

if __name__ == "__main__": sys.exit(main())
