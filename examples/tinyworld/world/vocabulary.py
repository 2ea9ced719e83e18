"""What exists in the tiny world and how it may be called.

The first phrase of every list is the canonical one; the others are paraphrases that training
captions draw from, so that rephrased prompts work.
"""

from __future__ import annotations

CLASS_NOUNS: dict[str, list[str]] = {
    "backpack": ["backpack", "rucksack", "school bag"],
    "boot": ["boot", "hiking boot", "fancy boot"],
    "clock": ["clock", "alarm clock"],
    "candle": ["candle", "lit candle"],
    "sneaker": ["sneaker", "running shoe", "sports shoe"],
    "glasses": ["glasses", "sunglasses", "pair of glasses"],
    "teapot": ["teapot", "tea pot", "ceramic teapot"],
    "vase": ["vase", "amphora", "urn"],
    "can": ["can", "tin can", "soup can"],
    "bowl": ["bowl", "bowl with a spoon"],
    "cup": ["cup", "coffee cup", "mug"],
    "robot": ["robot", "robot toy", "toy robot", "toy"],
    "car": ["car", "automobile"],
    "bus": ["bus", "coach"],
    "bicycle": ["bicycle", "bike"],
    "guitar": ["guitar", "electric guitar"],
    "umbrella": ["umbrella", "parasol"],
    "hat": ["hat", "top hat"],
    "rocket": ["rocket", "space rocket"],
    "cake": ["cake", "birthday cake"],
    "camera": ["camera", "photo camera"],
    "handbag": ["handbag", "purse"],
    "chair": ["chair", "wooden chair"],
    "stuffed animal": ["stuffed animal", "teddy bear", "bear plushie", "plush toy"],
    "mushroom": ["mushroom", "toadstool"],
    "crown": ["crown", "royal crown"],
    "cartoon": ["cartoon", "ghost", "cartoon ghost"],
    "cat": ["cat", "kitten"],
    "dog": ["dog", "puppy"],
    "duck": ["duck", "mallard"],
    "rabbit": ["rabbit", "bunny"],
    "horse": ["horse", "pony"],
    "elephant": ["elephant"],
    "penguin": ["penguin"],
    "owl": ["owl"],
    "fish": ["fish", "tropical fish"],
    "turtle": ["turtle", "tortoise"],
    "pig": ["pig", "piglet"],
    "frog": ["frog", "toad"],
    "dinosaur": ["dinosaur", "long-necked dinosaur"],
    "monkey": ["monkey"],
    "butterfly": ["butterfly"],
    "fox": ["fox"],
}

LIVING = frozenset(
    "cat dog duck rabbit horse elephant penguin owl fish turtle pig frog dinosaur monkey "
    "butterfly fox".split()
)

COLORS: dict[str, tuple[tuple[int, int, int], list[str]]] = {
    "red": ((214, 40, 40), ["red", "crimson", "scarlet"]),
    "orange": ((240, 130, 30), ["orange", "bright orange"]),
    "yellow": ((245, 210, 50), ["yellow", "golden", "lemon yellow"]),
    "green": ((60, 160, 70), ["green", "grass green"]),
    "teal": ((30, 165, 165), ["teal", "turquoise"]),
    "blue": ((45, 95, 215), ["blue", "royal blue"]),
    "purple": ((130, 65, 180), ["purple", "violet"]),
    "pink": ((240, 120, 175), ["pink", "rose pink"]),
    "brown": ((125, 80, 45), ["brown", "chocolate brown"]),
    "black": ((45, 45, 50), ["black", "jet black"]),
    "white": ((238, 238, 238), ["white", "snow white"]),
    "gray": ((135, 135, 140), ["gray", "grey", "silver"]),
}

TEXTURES: dict[str, list[str]] = {
    "striped": ["striped", "stripy"],
    "dotted": ["dotted", "polka dot", "spotted"],
    "checkered": ["checkered", "checked"],
}

SIZES: dict[str, list[str]] = {
    "small": ["small", "tiny", "little"],
    "large": ["large", "big", "huge"],
}

MOTIONS: dict[str, list[str]] = {
    "running": ["running", "dashing along", "racing forward"],
    "jumping": ["jumping", "leaping", "hopping up"],
    "sleeping": ["sleeping", "napping", "fast asleep"],
}

STYLES: dict[str, list[str]] = {
    "photo": [
        "a photo of",
        "a photograph of",
        "a picture of",
        "a close-up photo of",
        "an image of",
        "a product photograph of",
    ],
    "watercolor": [
        "a watercolor painting of",
        "a watercolor of",
        "an aquarelle of",
        "a painting of",
    ],
    "sketch": [
        "a pencil sketch of",
        "a pencil drawing of",
        "a black and white drawing of",
        "a sketch of",
    ],
    "pixel art": ["a pixel art picture of", "pixel art of", "an 8-bit sprite of"],
}

LIGHTS: dict[str, list[str]] = {
    "day": ["", "in daylight", "on a bright day", "in midday sun"],
    "sunset": ["at sunset", "at dusk", "in golden evening light", "at golden hour"],
    "night": ["at night", "in the moonlight", "in the dark of night", "by moonlight"],
    "fog": ["in the fog", "in thick mist", "on a foggy morning", "on a misty day"],
}

PLACES: dict[str, list[str]] = {
    "beach": ["on a beach", "on the beach", "on a sandy beach", "by the seaside"],
    "forest": ["in a forest", "in the woods", "in the jungle", "on a forest trail"],
    "snow": ["in the snow", "in a snowy field", "on snow", "in a winter landscape"],
    "city": ["in a city", "in the city", "on a city street", "with a city in the background"],
    "desert": ["in a desert", "in the desert", "among sand dunes", "in a sandy desert"],
    "kitchen": ["on a kitchen table", "in a kitchen", "on a kitchen counter"],
    "bedroom": ["in a bedroom", "in the bedroom", "beside a bed"],
    "meadow": ["in a meadow", "on a grassy lawn", "on green grass", "in a field of grass"],
    "space": ["in outer space", "in space", "on the moon", "among the stars"],
    "sea": ["under the sea", "underwater", "at the bottom of the sea", "on a coral reef"],
    "mountain": [
        "in front of mountains",
        "in the mountains",
        "with a mountain in the background",
        "in a mountain valley",
    ],
    "road": ["on a road", "on the road", "on a country road", "by the roadside"],
    "garden": ["in a flower garden", "in a garden", "among flowers", "by a white picket fence"],
    "library": ["in a library", "in front of a bookshelf", "among books"],
    "lake": ["by a lake", "beside a lake", "on a lake shore"],
    "farm": ["on a farm", "in front of a red barn", "in a farmyard"],
    "cave": ["in a cave", "inside a dark cave", "in a rocky cavern"],
    "studio": ["on a white background", "in a studio", "on a plain background"],
    "volcano": ["near a volcano", "in front of a volcano", "beside flowing lava"],
    "classroom": ["in a classroom", "in front of a blackboard", "in a school"],
}
