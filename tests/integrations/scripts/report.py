"""Print all that a script can see of how it was started, and use what depends on being `__main__`."""

import dataclasses
import inspect
import json
import multiprocessing
import os
import pickle
import sys

import sibling

state: int = 3


@dataclasses.dataclass
class Point:
    x: int
    y: "Point | None" = None


def double(x: int) -> int:
    return 2 * x


def names(q: "multiprocessing.Queue[str]") -> None:
    q.put(f"{__name__} {Point.__module__} {Point(1)}")


if __name__ == "__main__":
    main = sys.modules["__main__"]
    os.chdir("/")  # a path that was relative no longer leads here
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=names, args=(queue,))
    child.start()
    in_child = queue.get(timeout=60)
    child.join()
    with context.Pool(2) as spawned, multiprocessing.get_context("fork").Pool(2) as forked:
        pools = [pool.map(double, range(4)) for pool in (spawned, forked)]
    print(
        json.dumps(
            {
                "argv": sys.argv,
                "name": __name__,
                "file": __file__,
                "package": __package__,
                "spec": __spec__ and __spec__.name,
                "loader": type(__loader__).__name__,
                "doc": __doc__,
                "globals": sorted(globals()),
                "annotations": sorted(__annotations__),
                "path[0]": sys.path[0],
                "sibling": sibling.__file__,
                "seen by sibling": sibling.state_of_main(),
                "pickled": str(pickle.loads(pickle.dumps(Point(1, Point(2))))),
                "identity": main.__dict__ is globals(),
                "hints": sorted(inspect.get_annotations(Point, eval_str=True)),
                "source": inspect.getsource(Point),
                "in child": in_child,
                "pools": pools,
            },
            indent=1,
        )
    )
