"""Who may pass whom in the queue: changes of weights cost seconds, and nobody may starve for saving them.

A worker takes the oldest job for weights that it holds; if there is none, the oldest for weights that no worker uses
now, of the first LOOKED_AT; and the oldest of all if there is none either, or if that may not be passed.
"""

LONGEST_WAIT = 30.0  # seconds: no job is passed by one that came so much later
MOST_PASSED = 750  # jobs that pass the oldest one at most
LOOKED_AT = 200  # oldest jobs among which weights are looked for that no worker uses


def may_pass(created_at: float, oldest_created_at: float, oldest_passed: int) -> bool:
    """Whether a job may be taken before the oldest of the queue.

    Told by when jobs came and not by how long they waited: in a queue of an hour all have waited long, and weights
    would change for each. So no job is done later than if all that came within LONGEST_WAIT after it had come before.
    """
    return oldest_passed < MOST_PASSED and created_at - oldest_created_at <= LONGEST_WAIT
