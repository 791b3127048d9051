"""Measuring time, memory and FLOPs: the model beside the plain backbone, the data pipeline beside others."""
