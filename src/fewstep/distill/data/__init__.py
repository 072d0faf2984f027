"""What a student is trained on: prompts, paths of the teacher, pictures with captions; stored and read in shards."""
