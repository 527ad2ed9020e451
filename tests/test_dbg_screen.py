from test_screen import *
def test_dbg(tab):
    run_on_page(tab, five)
    tab.locator("#screen .table tbody tr").nth(1).click()
    check_chosen(tab, column(tab)[1])
    tab.locator("#screen .refused summary").click()
    tab.wait_for_timeout(800)
    tab.screenshot(path="/tmp/w/scr/page.png", full_page=True)
