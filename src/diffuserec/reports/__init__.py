"""Reports: tables, figures and pages made of results."""
