"""What a study is, as data: definitions, their storage, and the names of what a trial records."""
