"""Makes people.csv: made-up patients, and whether they returned within a month."""

import csv
import random

chance = random.Random(0)
with open("people.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["age", "ward", "visits", "returned"])
    for _ in range(4_000):
        age, ward, visits = chance.randint(18, 90), chance.choice(["north", "south", "west"]), chance.randint(0, 9)
        risk = age + 8 * visits + (20 if ward == "west" else 0) + chance.gauss(0, 15)
        table.writerow([age, ward, visits, "yes" if risk > 110 else "no"])
