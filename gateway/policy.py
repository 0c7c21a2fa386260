"""Who may pass whom in the queue: changes of weights cost seconds, and nobody may starve for saving them."""

LONGEST_WAIT = 30.0  # seconds: no job is passed by one that came so much later
MOST_PASSED = 500  # jobs that pass the oldest one at most


def takes_warm(oldest_created_at: float, oldest_passed: int, warm_created_at: float) -> bool:
    """Whether a worker may take a job for the weights that it holds before the oldest job of the queue.

    Told by when jobs came and not by how long they waited: in a queue of an hour all have waited long, and weights
    would change for each. So no job is done later than if all that came within LONGEST_WAIT after it had come before.
    """
    return oldest_passed < MOST_PASSED and warm_created_at - oldest_created_at <= LONGEST_WAIT
