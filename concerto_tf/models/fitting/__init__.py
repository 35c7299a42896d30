"""What training needs beside a model: how long it lasts, and its optimizer."""
