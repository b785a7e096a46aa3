"""Lines of events files, as jobs write them."""

import json

START = 1_700_000_000.0


def line(event, **values):
    return {"event": event, "time": START, **values}


def metrics(step, **values):
    return line("metrics", step=step, metrics=values)


def write(path, *lines):
    with open(path, "a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in lines)
