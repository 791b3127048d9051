"""What finished runs say together: records, tables, figures, pages."""
