"""Stands for a torch that is not installed, for the processes that the tests start: training needs none, and importing it takes long."""

raise ImportError("the tests start training without torch")
