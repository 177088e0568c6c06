"""What `fidelity` asks: openings of many kinds of text.

Which answers stay equal is partly chance, so there are many: forty that have nothing in common, and
eight kinds of openings on fifteen subjects.
"""

SINGLE = (
    "The first thing the lighthouse keeper did every morning was",
    "To bake a loaf of rye bread you need flour, water, salt and",
    "Dear Mrs. Alvarez,\n\nThank you for your letter about the broken heating. We",
    "def median(values):\n    ordered = sorted(values)\n",
    "A prime number is a whole number greater than one that",
    "Once there was a fox who was afraid of the dark. One night",
    "The three states of matter that everyone learns at school are",
    "Minutes of the gardening club, 4 May. Present: eleven members. The chair",
    "SELECT name, COUNT(*) AS orders FROM customers",
    "Question: Why do leaves turn red in autumn?\nAnswer:",
    "The train from the coast arrived forty minutes late because",
    "In the northern hemisphere the shortest day of the year falls in",
    "Here are five tips for sleeping better:\n1.",
    "The difference between weather and climate is that",
    "function debounce(callback, delay) {\n  let timer;\n",
    "When the orchestra had finished tuning, the conductor",
    "Translate to French: The bridge is closed on Sundays.\nFrench:",
    "The recipe calls for two onions, but if you only have one,",
    "A triangle has sides of length 3, 4 and 5. Its area is",
    "My grandfather repaired clocks. His workshop smelled of",
    "The human heart has four chambers:",
    "Shopping list: bread, butter, six eggs,",
    "In chess, a fork is a tactic in which",
    "The old map showed an island where today there is only",
    "# Installation\n\nFirst make sure that Python is installed. Then",
    "The main causes of the delay were, in order of importance,",
    "Water boils at a lower temperature on a mountain because",
    "Interviewer: What did you do before you became a diver?\nGuest:",
    "The city council voted last night to",
    "To find the largest element of a list, start with the first one and",
    "An octopus has eight arms and, surprisingly,",
    "She opened the envelope, read the single line twice, and",
    'Complete the JSON: {"name": "Ada", "languages": ["English",',
    "The opposite of generous is",
    "Rule 1: Never leave the gate open. Rule 2:",
    "The moon looks larger near the horizon, although",
    "Good evening, and welcome to the late news. Tonight's top story is",
    "If a shop sells pencils at 12 for 3 euros, then 20 pencils cost",
    "The best time to prune an apple tree is",
    "Every language changes over time. For example, English once",
)

OPENINGS = (
    "The history of {} begins",
    "Three things to know about {}:\n1.",
    "Question: What is special about {}?\nAnswer:",
    "A short poem about {}:\n",
    "In the museum of {}, visitors first see",
    '"I never cared for {}," said the captain, and',
    "The engineer who wrote a book about {} remembers:",
    "Compared with a hundred years ago, {} today",
)

SUBJECTS = (
    *("bread", "bridges", "clocks", "railways", "glass", "winter", "bees", "maps", "tea"),
    *("volcanoes", "bicycles", "paper", "honey", "music", "lighthouses"),
)

PROMPTS = (*SINGLE, *(opening.format(subject) for opening in OPENINGS for subject in SUBJECTS))
