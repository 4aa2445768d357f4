"""Work in a forked process, for programs that have computed nothing: a fork follows no threads."""

import os
import sys
import traceback
from collections.abc import Callable


def in_child(work: Callable[[], object]) -> int:
    """The status of a process that does this work: 0, or the code of its sys.exit.

    1 after another exception, which is printed; minus the number of the signal that killed it.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
