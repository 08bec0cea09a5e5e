"""The report of a run: report.html, report.json and loss.png.

result, load        a run's results in memory; how they are read from storage
scores              accuracy, AUC, calibration and their intervals
sentences, summary  what the report says about the run; the content of report.json
charts, figures     the geometry of charts; which charts there are
page, picture       report.html; loss.png
write               writes the three files
"""
