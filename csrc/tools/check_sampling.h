int check_sampling();
