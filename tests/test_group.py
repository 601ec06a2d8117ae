"Two real ranks that add up what they know."

from simpsons_llm.machine.distributed import start_ranks


def test_two_ranks_add_up_in_order_and_all_hear_of_a_failure():
    said = start_ranks("""
        join_group(ranks, find_device("cpu"))
        try: on_main(ranks, lambda: 1/0)
        except ZeroDivisionError: told = "mine"
        except RankFailed as e: told = str(e)
        print(total(ranks.rank + 1, 10), gather(ranks.rank), on_main(ranks, lambda: ranks.rank + 7), told)""")
    sums = "[3.0, 20.0] [0, 1] 7"
    assert said == [f"{sums} mine", f"{sums} rank 0 failed: ZeroDivisionError: division by zero"]
