# %% [markdown]
# # A character that talks
#
# > From a script to an answer, in a quarter of an hour: run the cells from top to bottom.
#
# A language model has read much of the internet, and so it knows a little of everything and nobody in particular. Here it learns from a script until Homer answers a little more like Homer. Nothing has to be set, and no network is needed after the first time (then 93 MB of weights are fetched).

# %% tags=["parameters"]
out = "runs/demo"  # folder of the run
base_model = "smollm2-135m"  # a hub id, folder or short name
max_minutes = 6.0  # training stops after so many minutes, with what was learned so far

# %%
from simpsons_llm import Character, finetune, prepare

# %% [markdown]
# ## Three lines of a script
#
# The script was written for this book: 28 episodes, with the characters everybody knows. Any script will do: a table, plain text, a screenplay.

# %%
data = prepare("springfield")
data.lines("train")[["location", "speaker", "text"]].head(3)

# %% [markdown]
# ## Before
#
# The base model is asked what Homer says next, three times. It writes English. Homer it is not:

# %%
question = "Marge Simpson: Homer, the dog is wearing your tie again."
before = Character.load(base_model, "Homer Simpson")
before.answers(question, 3)

# %% [markdown]
# ## Fine-tuning
#
# One call. It reads each line of the training episodes once, and corrects a small addition to the model, the *adapter*, after every few scenes. How far it is and how long it will take stands below the cell; a few minutes on a laptop, much less on a GPU.

# %%
run = finetune(data, run=out, base_model=base_model, max_minutes=max_minutes, score_test=True)
run

# %% [markdown]
# The *held-out loss* says how surprised the model is by lines that it never learned from: less is better. It was measured before and at the end (of a longer run also on the way), and the step at which it was least was kept:

# %%
run.plot();

# %% [markdown]
# ## After
#
# The same question, with the same random numbers:

# %%
homer = run.character("Homer Simpson")
homer.answers(question, 3)

# %% [markdown]
# One question is an anecdote. Here are nine moments in three scenes of the test episodes, chosen by rule and not by taste: what the script says, what the base model says, what the fine-tuned one says. With 135 million parameters and a few minutes nobody becomes a comedian.

# %%
run.before_after()

# %% [markdown]
# ## Ask him yourself
#
# Change the words and run the cell again. A line is written as `Name: what is said`; several lines make a scene. Another number for `random_seed`, another answer.

# %%
homer.says(
    """Bart Simpson: Dad, what did you do at work today?
Lisa Simpson: Besides sleeping.""",
    location="Simpson Home",
    random_seed=1,
)

# %% [markdown]
# ## Talk to him
#
# A conversation is called with your words, and shows the scene as it goes on. You play somebody; what was said before is heard. `talk.retry()`, `talk.undo()` and `talk.edit(2, "other words")` mend it, `talk.save("scene.txt")` keeps it as a script. In a terminal it is `simpsons-llm chat --run runs/demo`.

# %%
talk = homer.chat(you="Lisa Simpson", location="Simpson Home")
talk("Dad, the dog has your tie, and he has the interview at ten.")

# %%
talk("Would you hire him?")

# %% [markdown]
# ## Where to go next
#
# | you want | go to |
# |---|---|
# | to know what the words mean that the book uses | [words](01_words.ipynb) |
# | your own script | [formats](../1_data/13_formats.ipynb), [preparing data](../1_data/14_prepare.ipynb) |
# | to understand what an adapter is | [the LoRA layer](../2_lora/20_layer.ipynb) |
# | to see every line of the training | [the loop](../4_train/45_loop.ipynb) |
# | better results: more steps, a larger model, other settings | [settings](../4_train/40_config.ipynb), [fine-tuning](../4_train/47_finetune.ipynb) |
# | to know what it will cost before it begins | [costs](../4_train/41_cost.ipynb) |
# | several GPUs or machines | [launching](../7_ranks/72_launch.ipynb) |
# | Intel GPUs | [a manual](../7_ranks/74_xpu.ipynb) |
# | to let them talk among themselves, or to play another one | [a conversation](../6_talk/60_chat.ipynb) |
# | to know whether it is the character | [evaluation](../5_character/52_evaluate.ipynb) |
# | to give the character away, or to use it in Ollama | [publishing](../6_talk/66_publish.ipynb) |
# | the same from a terminal | `simpsons-llm --help`; this chapter is `simpsons-llm demo` |
