"""From images to a dataset: resumable shards, the finished dataset, its card, the report."""
