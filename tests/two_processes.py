"""Two real processes on this machine, as `torchrun` would start them."""

import importlib
import multiprocessing
import os
import time
import traceback


def run_two(module, folder, *, timeout):
    """Run `worker(index, folder)` of a test module in each of two processes, and assert that both succeed.

    They are forks, which have torch imported already: starting Python anew takes several seconds for each.
    """
    worker = importlib.import_module(module).worker

    def work(index, failure):
        try:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            worker(index, str(folder))
        except BaseException:
            failure.send(traceback.format_exc())
            raise

    fork, deadline = multiprocessing.get_context("fork"), time.monotonic() + timeout
    pipes = [fork.Pipe(duplex=False) for _ in range(2)]
    processes = [fork.Process(target=work, args=(index, pipes[index][1])) for index in range(2)]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            # One that failed leaves the other waiting for it.
            failures = [reader.recv() for reader, _ in pipes if reader.poll()]
            assert not failures, failures[0]
            assert time.monotonic() < deadline, f"two processes took more than {timeout} seconds"
            time.sleep(0.02)
        assert [process.exitcode for process in processes] == [0, 0], [r.recv() for r, _ in pipes if r.poll()]
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
