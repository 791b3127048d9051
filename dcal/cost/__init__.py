"""What things cost: the model beside the plain backbone, the data pipeline beside those of other libraries."""
