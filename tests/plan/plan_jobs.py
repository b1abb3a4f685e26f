"""Jobs that the tests of a plan's measurements run inside worker processes."""

import thinwire as tw
from thinwire.cli.plan_measure import measured_link
from thinwire.link import Link
from thinwire.wire.frame import HEADER, length


def measures(rank, N, args, say):
    """For each list of links, one of each rank: what every rank is told of the line."""
    for links in args["lines"]:
        found = measured_link(tw.Paced(Link.parse(links[rank])).over(HEADER, length))
        say("measured", bandwidth=found.bandwidth, latency=found.latency)
