"""Plan: which method for this job over this link, by a model whose terms are all named."""

from thinwire.plan.cost import MOST_H, Coding, Cost, Job, advice, cost, costs
from thinwire.plan.options import Option, options

__all__ = ["MOST_H", "Coding", "Cost", "Job", "Option", "advice", "cost", "costs", "options"]
