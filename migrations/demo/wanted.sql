select id, nas_id, ip, redirect, ceil_in, ceil_out from users order by id
