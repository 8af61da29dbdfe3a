"""Look for damage in a store: the database, the vectors, the pictures.

    docmetric check types
    docmetric check types --rebuild      # makes vectors again from the pictures; saves what it can of a broken database

Exit status 2 when something is damaged and was not repaired.
"""
