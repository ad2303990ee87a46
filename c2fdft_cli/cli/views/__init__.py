"""What commands print and draw of a job: its lines, tables and bars."""
