"""The run folder: the ledger of its records, its file names, and the threads that write pictures.

Begin with `ledger`. `ways` compares how pictures were made, `names` makes file names, `writer` writes files,
and `schema` makes the JSON schema of a record.
"""
