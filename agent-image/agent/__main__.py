"""`python3 agent.pyz COMMAND ...`"""

import sys

from agent.cli import main

sys.exit(main())
