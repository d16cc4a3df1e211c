"""Everyday questions without an image, on which smol-llava keeps SmolLM2's answers.

They are of other kinds than the common facts of `benchmarks/common_facts.csv` (capitals,
continents, symbols of elements, opposites), on which the model is scored. Questions to be held out
from training are of other kinds again.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextQuestion:
    """A question without its question mark, and a word of its answer ("" if none is needed)."""

    text: str
    answer: str = ""


_TRAINED = {
    "Who painted {}": "the Mona Lisa|Guernica|The Starry Night|The Scream|the Sistine Chapel|Girl "
    "with a Pearl Earring|The Last Supper|Water Lilies|The Night Watch|The Persistence of Memory",
    "Who invented {}": "the telephone|the light bulb|the steam engine|the printing press|the "
    "aeroplane|the radio|dynamite|the telescope|the World Wide Web|vaccination|the battery|paper",
    "Who discovered {}": "penicillin|gravity|America|radioactivity|X-rays|oxygen|electrons|DNA",
    "Who was {}": "Albert Einstein|Napoleon|Cleopatra|Marie Curie|Mozart|Charles Darwin|Nelson "
    "Mandela|Leonardo da Vinci|Julius Caesar|Martin Luther King|Isaac Newton|Joan of Arc|Plato",
    "Where is {}": "the Eiffel Tower|the Great Wall|Mount Everest|the Colosseum|Machu Picchu|the "
    "Sahara|the Statue of Liberty|Niagara Falls|the Taj Mahal|Big Ben|the Amazon rainforest|Mount "
    "Fuji|the Grand Canyon|the Kremlin|Stonehenge|the Dead Sea|the Great Barrier Reef|Hollywood",
    "Which river flows through {}": "Paris|London|Cairo|Rome|Vienna|Baghdad|New York|Budapest",
    "Which sea or ocean lies next to {}": "Italy|Portugal|Florida|Greece|Japan|Peru|Kenya|Norway",
    "What language do people speak in {}": "Brazil|France|Egypt|Germany|Mexico|China|Austria|Japan|"
    "Russia|Greece|Italy|Sweden|Turkey|Iran|Israel|Portugal|Argentina|Poland|Thailand|Cuba",
    "In which hemisphere is {}": "Australia|Canada|Argentina|Norway|Chile|Japan|New Zealand",
    "What color is {}": "the sky|grass|snow|a banana|blood|coal|a lemon|the sea|a carrot|milk|gold",
    "What sound does {} make": "a dog|a cat|a cow|a duck|a sheep|a lion|a horse|an owl|a snake",
    "Where does {} live": "a polar bear|a kangaroo|a camel|a penguin|a shark|a panda|a bat|a frog",
    "What does {} eat": "a rabbit|a cow|a lion|a spider|a panda|a whale|a sparrow|a koala",
    "How many legs does {} have": "a spider|an ant|a dog|a bird|a snake|a crab|a table|a horse",
    "How many sides does {} have": "a triangle|a square|a pentagon|a hexagon|an octagon|a cube",
    "How many days are in {}": "a week|January|a year|February|a leap year|April|a fortnight",
    "What is {}": "2 plus 2|3 times 4|10 minus 7|half of 20|100 divided by 5|7 plus 8|6 times 6|"
    "photosynthesis|gravity|democracy|an atom|a verb|a mammal|inflation|a glacier|a galaxy|DNA|an "
    "island|a novel|a symphony|an algorithm|electricity|a volcano|a desert|philosophy|a vaccine|"
    "climate change|the moon|a comet|the internet|a prime number|a square root|evolution|a virus",
    "What is {} made of": "glass|bread|a candle|paper|a diamond|steel|cheese|a brick|chocolate",
    "What is the largest {}": "ocean|planet|mammal|desert|country|organ of the body|city in Brazil",
    "What is the longest {}": "river|wall|bone of the body|snake|mountain range|day of the year",
    "What do you use {} for": "a hammer|a spoon|a telescope|a thermometer|a pen|an umbrella|a key",
    "What does {} do": "a baker|a doctor|a pilot|a lawyer|a farmer|a plumber|a judge|a teacher",
    "Why {}": "is the sky blue|do leaves fall|do we sleep|does ice float|do birds fly south|is the "
    "sea salty|do we have seasons|is exercise good for you|do cats purr|does the moon change shape",
    "How do you {}": "boil an egg|make tea|learn a language|tie a knot|plant a tree|save money|"
    "write a letter|stay healthy|clean a window|make a sandwich|fall asleep|read a map",
    "When {}": "did the Second World War end|was the first moon landing|did the Berlin Wall fall|"
    "is Christmas|does summer start|was the telephone invented|did the Titanic sink|do birds nest",
    "Which is {}": "heavier, iron or wood|faster, a car or a bicycle|bigger, the sun or the moon|"
    "colder, ice or steam|longer, a mile or a metre|older, Rome or New York|sweeter, sugar or salt",
    "Which animal is {}": "the fastest|the tallest|the largest|the king of the jungle|a pet",
    "Write a sentence about {}": "the sea|a cat|winter|a train|music|friendship|the city|a garden",
    "Name three {}": "fruits|colors|animals|countries|sports|planets|vegetables|instruments",
    "Name a {}": "river in Africa|mountain in Europe|city in Spain|bird that cannot fly|metal|gas|"
    "language of India|famous scientist|holiday|season|country in Asia|country in South America",
    "Explain {} in one sentence": "rain|money|friendship|the heart|a computer|school|war|history",
    "Translate into Spanish: {}": "good morning|thank you|the house|I love you|water|my friend",
    "Tell me about {}": "London|China|dogs|football|the Romans|space|the weather|Africa",
}  # fmt: skip
_HELD_OUT = {
    "In which country is {}": "Paris=France|Berlin=Germany|Madrid=Spain|Milan=Italy|Mumbai=India|"
    "Toronto=Canada|Sydney=Australia|Osaka=Japan|Shanghai=China|Moscow=Russia|Munich=Germany|"
    "Barcelona=Spain|Chicago=United States|Lyon=France|Manchester=England|Venice=Italy|Istanbul="
    "Turkey|Cape Town=South Africa|Rio de Janeiro=Brazil|Vancouver=Canada|Geneva=Switzerland|Cairo="
    "Egypt|Lagos=Nigeria|Delhi=India|Seoul=Korea|Athens=Greece|Lisbon=Portugal|Vienna=Austria|"
    "Dublin=Ireland|Stockholm=Sweden|Oslo=Norway|Warsaw=Poland|Prague=Czech|Budapest=Hungary|Lima="
    "Peru|Havana=Cuba|Bangkok=Thailand|Hanoi=Vietnam|Nairobi=Kenya|Amsterdam=Netherlands",
    "What is the plural of {}": "mouse=mice|child=children|man=men|foot=feet|tooth=teeth|goose="
    "geese|woman=women|city=cities|box=boxes|leaf=leaves|knife=knives|baby=babies|wolf=wolves|ox="
    "oxen|book=books|bus=buses|life=lives|party=parties|hero=heroes|person=people",
    "What is the past tense of {}": "go=went|see=saw|eat=ate|run=ran|write=wrote|sing=sang|take="
    "took|swim=swam|give=gave|buy=bought|think=thought|break=broke|fly=flew|come=came|know=knew|"
    "speak=spoke|drink=drank|begin=began|find=found|make=made",
    "What is the currency of {}": "Japan=yen|the United States=dollar|India=rupee|Russia=ruble|"
    "China=yuan|Mexico=peso|Sweden=krona|Turkey=lira|Poland=zloty|Germany=euro|Canada=dollar|"
    "Thailand=baht|Israel=shekel|Vietnam=dong|the United Kingdom=pound|Switzerland=franc",
    "Who wrote {}": "Hamlet=Shakespeare|Pride and Prejudice=Austen|1984=Orwell|War and Peace="
    "Tolstoy|The Odyssey=Homer|Moby Dick=Melville|Don Quixote=Cervantes|Oliver Twist=Dickens|The "
    "Great Gatsby=Fitzgerald|Harry Potter=Rowling|Frankenstein=Shelley|Faust=Goethe|Dracula=Stoker|"
    "The Old Man and the Sea=Hemingway|Macbeth=Shakespeare|The Hobbit=Tolkien",
    "What do you call a baby {}": "dog=puppy|cat=kitten|cow=calf|horse=foal|sheep=lamb|bear=cub|"
    "goat=kid|duck=duckling|lion=cub|deer=fawn|pig=piglet|hen=chick|frog=tadpole|goose=gosling",
    "What comes after {}": "Monday=Tuesday|March=April|Friday=Saturday|June=July|spring=summer|"
    "Sunday=Monday|August=September|Wednesday=Thursday|nine=ten|December=January|twelve=thirteen",
}  # fmt: skip


def trained_questions() -> list[TextQuestion]:
    """Questions on which answers are kept in training."""
    return _questions(_TRAINED)


def held_out_text_questions() -> list[TextQuestion]:
    """Questions of other kinds, with their answers: to choose how much text training needs."""
    return _questions(_HELD_OUT)


def _questions(kinds: dict[str, str]) -> list[TextQuestion]:
    found = []
    for template, subjects in kinds.items():
        for subject in subjects.split("|"):
            name, _, answer = subject.partition("=")
            found.append(TextQuestion(template.format(name), answer))
    return found
